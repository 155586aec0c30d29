// A vector function, or its gradient: an invocation takes a vector.

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let unit = (group.y * groups.x + group.x) * 64u + lane;
//:if SCATTER
    if (unit >= PIECES) { return; }
    let table = TABLE + unit * ENTRIES;
    let first = VECTORS / PIECES * unit + min(unit, VECTORS % PIECES);
    let end = first + VECTORS / PIECES + select(0u, 1u, unit < VECTORS % PIECES);
//:else
    if (unit >= VECTORS) { return; }
    let first = unit;
    let end = unit + 1u;
//:end
    for (var number = first; number < end; number++) {
    var at = Site();
//:if OF_QUERIES
    at = site_of_query(number);
    at.k = at.q;
    at.kc = at.qc;
//:else
    let of_grid = u32(BATCH * KEYS * HEADS_KV);
    let is_additional = number >= of_grid;
    let n = i32(select(number, number - of_grid, is_additional));
    let tokens = select(KEYS, ADDITIONAL, is_additional);
    at.hkv = n % HEADS_KV;
    at.h = at.hkv;
    at.k = n / HEADS_KV % tokens + select(0, KEYS, is_additional);
    at.b = n / HEADS_KV / tokens;
    at.kc = coordinates_of_key(at.k);
    at.q = at.k;
    at.qc = at.kc;
    at.row = at.b * HEADS + at.h;
//:end
    let dim = $LENGTH$;
    let base = number * u32(dim);
$SUMS$
    for (var d = 0; d < dim; d++) {
$EACH$
$STORE$
    }
    }
}
