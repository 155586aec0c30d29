// What the walks over pairs share: where a pair stands, windows, and a pair's numbers.

//:if ZERO_SCALE
// Compilers take 0 * x for 0, whatever x is.
fn by_scale(x: R) -> R { return select(R(0.0), nan(), is_nan(x) || abs(x) > -LOWEST); }
//:else
fn by_scale(x: R) -> R { return SCALE * x; }
//:end

struct Site {
    b: i32,
    h: i32,
    hkv: i32,
    q: i32,
    k: i32,
    qc: vec3<i32>,
    kc: vec3<i32>,
    // The vectors of the query and of the key, among all.
    qv: u32,
    kv: u32,
    // Batch entry times heads plus head.
    row: i32,
    is_additional: bool,
}

// A row's numbers: what its pairs' functions are functions of.
struct Row {
    alive: bool,
    stage: array<R, STAGES>,
    stage_t: array<R, STAGES>,
    grad_stage: array<R, STAGES>,
    grad_stage_t: array<R, STAGES>,
    delta: R,
    delta_t: R,
    grad_logsumexp: R,
    grad_logsumexp_t: R,
}

struct Pair {
    score: R,
    score_t: R,
    grad: R,
    grad_t: R,
}

// Positions along the three axes, each span half-open.
struct Spans {
    start: vec3<i32>,
    end: vec3<i32>,
}

$WINDOWS$

fn windows(qc: vec3<i32>) -> Spans {
    let group = qc % DILATION;
    let position = qc / DILATION;
    let x = window_0(group.x, position.x);
    let y = window_1(group.y, position.y);
    let z = window_2(group.z, position.z);
    return Spans(vec3<i32>(x.x, y.x, z.x), vec3<i32>(x.y, y.y, z.y));
}

fn viewers(kc: vec3<i32>) -> Spans {
    let group = kc % DILATION;
    let position = kc / DILATION;
    let x = queries_of_0(group.x, position.x);
    let y = queries_of_1(group.y, position.y);
    let z = queries_of_2(group.z, position.z);
    return Spans(vec3<i32>(x.x, y.x, z.x), vec3<i32>(x.y, y.y, z.y));
}

// The query of a vector's number: [B, *X, H].
fn site_of_query(number: u32) -> Site {
    var at = Site();
    let n = i32(number);
    at.h = n % HEADS;
    at.hkv = at.h / PER_KV;
    at.q = n / HEADS % QUERIES;
    at.b = n / HEADS / QUERIES;
    at.qc = vec3<i32>(at.q / (QUERY_SHAPE.y * QUERY_SHAPE.z), at.q / QUERY_SHAPE.z % QUERY_SHAPE.y, at.q % QUERY_SHAPE.z);
    at.qv = number;
    at.row = at.b * HEADS + at.h;
    return at;
}

fn query_vector(b: i32, h: i32, qc: vec3<i32>) -> u32 {
    return u32((b * QUERIES + (qc.x * QUERY_SHAPE.y + qc.y) * QUERY_SHAPE.z + qc.z) * HEADS + h);
}

// The pair of a query and a key of the grid.
fn with_key(query: Site, kc: vec3<i32>) -> Site {
    var at = query;
    at.kc = kc;
    at.k = (kc.x * KEY_SHAPE.y + kc.y) * KEY_SHAPE.z + kc.z;
    at.kv = u32((at.b * KEYS + at.k) * HEADS_KV + at.hkv);
    return at;
}

// The pair of a query and an additional key, which is beyond the grid along the first of the user's axes.
fn with_additional(query: Site, n: i32) -> Site {
    var at = query;
    at.k = KEYS + n;
    at.kc = coordinates_of_key(at.k);
    at.kv = u32(BATCH * KEYS * HEADS_KV + (at.b * ADDITIONAL + n) * HEADS_KV + at.hkv);
    at.is_additional = true;
    return at;
}

fn coordinates_of_key(k: i32) -> vec3<i32> {
    return $KEY_COORDINATES$;
}

//:if RPB
// The entry of the bias table: at offset 0 from itself a query finds the middle.
fn bias_entry(at: Site) -> u32 {
    let offset = max(WINDOW - 1 + at.kc / DILATION - at.qc / DILATION, vec3<i32>(0));
    let extent = 2 * WINDOW - 1;
    return u32(((at.h * extent.x + offset.x) * extent.y + offset.y) * extent.z + offset.z);
}
//:end

//:if UNFUSED
// The place of a pair among the attention weights.
fn slot_of(at: Site) -> u32 {
    var slot = WINDOW.x * WINDOW.y * WINDOW.z + at.k - KEYS;
    if (!at.is_additional) {
        let offset = at.kc / DILATION - windows(at.qc).start;
        slot = (offset.x * WINDOW.y + offset.y) * WINDOW.z + offset.z;
    }
    return u32(((at.b * HEADS + at.h) * QUERIES + at.q) * SLOTS + slot);
}
//:end

//:if !WIDE
//:if SCORES
// Of vectors of DIM elements.
fn dot_q(a: u32, b: u32) -> R {
    var sums = array<R, 4>();
//:each DIM
    sums[d & 3u] += arena[a + d] * arena[b + d];
//:end
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}
//:end

//:if GRADS
// Of vectors of DIM_V elements.
fn dot_v(a: u32, b: u32) -> R {
    var sums = array<R, 4>();
//:each DIM_V
    sums[d & 3u] += arena[a + d] * arena[b + d];
//:end
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}
//:end

fn pair_of(at: Site) -> Pair {
    var x = Pair();
//:if SCORES
    let q = at.qv * DIM;
    let k = at.kv * DIM;
    x.score = by_scale(dot_q(Q + q, K + k));
//:if RPB
    if (!at.is_additional) { x.score += arena[RPB + bias_entry(at)]; }
//:end
//:if QT
    x.score_t += by_scale(dot_q(QT + q, K + k));
//:end
//:if KT
    x.score_t += by_scale(dot_q(Q + q, KT + k));
//:end
//:if RPBT
    if (!at.is_additional) { x.score_t += arena[RPBT + bias_entry(at)]; }
//:end
//:end
//:if GRADS
    let o = at.qv * DIM_V;
    let v = at.kv * DIM_V;
    x.grad = dot_v(DO + o, V + v);
//:if DOT
    x.grad_t += dot_v(DOT + o, V + v);
//:end
//:if VT
    x.grad_t += dot_v(DO + o, VT + v);
//:end
//:end
    return x;
}

fn load_row(vector: u32) -> Row {
    var row = Row();
    row.alive = true;
//:if NUMBERS
    let at = NUMBERS + vector * (1u + 4u * STAGES);
    row.alive = arena[at] != R(0.0);
    for (var k = 0u; k < STAGES; k++) {
        row.stage[k] = arena[at + 1u + 4u * k];
        row.stage_t[k] = arena[at + 2u + 4u * k];
        row.grad_stage[k] = arena[at + 3u + 4u * k];
        row.grad_stage_t[k] = arena[at + 4u + 4u * k];
    }
//:end
    return row;
}
//:end

$FUNCTIONS$
