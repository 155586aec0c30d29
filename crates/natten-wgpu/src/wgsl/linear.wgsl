// Linear attention with decay, by its recurrence: a state of DIM x DIM_V numbers a batch entry and query head. Numbers are
// values, or values with a tangent.

//:if TANGENTS
struct Num { v: R, t: R }
fn value(v: R, t: R) -> Num { return Num(v, t); }
fn add(a: Num, b: Num) -> Num { return Num(a.v + b.v, a.t + b.t); }
fn mul(a: Num, b: Num) -> Num { return Num(a.v * b.v, a.t * b.v + a.v * b.t); }
fn exp_of(a: Num) -> Num { let e = f_exp(a.v); return Num(e, e * a.t); }
fn first_of(a: Num) -> R { return a.v; }
fn result_of(a: Num) -> R { return a.t; }
fn store(region: u32, at: u32, a: Num) {
    arena[region + 2u * at] = a.v;
    arena[region + 2u * at + 1u] = a.t;
}
fn fetch(region: u32, at: u32) -> Num { return Num(arena[region + 2u * at], arena[region + 2u * at + 1u]); }
//:else
alias Num = R;
fn value(v: R, t: R) -> Num { return v; }
fn add(a: Num, b: Num) -> Num { return a + b; }
fn mul(a: Num, b: Num) -> Num { return a * b; }
fn exp_of(a: Num) -> Num { return f_exp(a); }
fn first_of(a: Num) -> R { return a; }
fn result_of(a: Num) -> R { return a; }
fn store(region: u32, at: u32, a: Num) { arena[region + at] = a; }
fn fetch(region: u32, at: u32) -> Num { return arena[region + at]; }
//:end

$LOADS$

// Where the vectors of a token begin.
fn query_at(at: Site, dim: u32) -> u32 { return u32((at.b * QUERIES + at.q) * HEADS + at.h) * dim; }
fn key_at(at: Site, dim: u32) -> u32 { return u32((at.b * KEYS + at.k) * HEADS_KV + at.hkv) * dim; }

fn site_of(head: u32, token: i32) -> Site {
    var at = Site();
    at.b = i32(head) / HEADS;
    at.h = i32(head) % HEADS;
    at.hkv = at.h / PER_KV;
    at.row = i32(head);
    at.q = token;
    at.k = token;
    at.qc = vec3<i32>(0, 0, token);
    at.kc = at.qc;
    return at;
}

fn factor_of(at: Site) -> Num {
    let decay = decay_of(at);
    return exp_of(value(decay[0], decay[1]));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = (group.y * groups.x + group.x) * 64u + lane;
    if (number >= INVOCATIONS) { return; }
$BODY$
}
