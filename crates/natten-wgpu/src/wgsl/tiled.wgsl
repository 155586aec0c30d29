// Softmax over boxes: a workgroup takes a box of ROW_COUNT queries of a head, and walks the boxes of KEY_COUNT keys that
// their windows meet, scores and products in register tiles of 8 rows. Boxes that every query sees whole need no mask.
// Row g of a thread's tile is row 8 * row_group + g of the box; its columns are next to each other among the keys, and
// in two quarters of four among the values' elements.

var<workgroup> queries: array<vec4<f32>, $QUERY_CELLS$>;
// Keys, or values, of a part of the tile.
var<workgroup> others: array<vec4<f32>, 128>;
// Scores, and then weights: [key][row].
var<workgroup> weights: array<vec4<f32>, 512>;
var<workgroup> row_vector: array<u32, 64>;
var<workgroup> row_start: array<vec3<i32>, 64>;
var<workgroup> row_end: array<vec3<i32>, 64>;
var<workgroup> factor: array<f32, 64>;
var<workgroup> key_vector: array<u32, 32>;
// Of a key's position beyond the window: one that no window has.
var<workgroup> key_position: array<vec3<i32>, 32>;

// Whether a value of this part is infinite or NaN: then pairs that are masked may not be multiplied with 0.
var<workgroup> is_odd: atomic<u32>;
// The weight of a pair that does not count: -0, which adds nothing and can be told from a weight that underflows.
const ABSENT: u32 = 0x80000000u;

// Loads 4 rows' elements of a dim.
fn four_queries(group: u32, d: u32) -> vec4<f32> {
    if (d >= DIM) { return vec4<f32>(0.0); }
    return SCALE * vec4<f32>(
        arena[Q + row_vector[4u * group] * DIM + d],
        arena[Q + row_vector[4u * group + 1u] * DIM + d],
        arena[Q + row_vector[4u * group + 2u] * DIM + d],
        arena[Q + row_vector[4u * group + 3u] * DIM + d],
    );
}

fn four_keys(group: u32, d: u32) -> vec4<f32> {
    if (d >= DIM) { return vec4<f32>(0.0); }
    return vec4<f32>(
        arena[K + key_vector[4u * group] * DIM + d],
        arena[K + key_vector[4u * group + 1u] * DIM + d],
        arena[K + key_vector[4u * group + 2u] * DIM + d],
        arena[K + key_vector[4u * group + 3u] * DIM + d],
    );
}

fn four_values(key: u32, quarter: u32) -> vec4<f32> {
    let d = 4u * quarter;
    let at = V + key_vector[key] * DIM_V + d;
//:if WHOLE_VALUES
    return vec4<f32>(arena[at], arena[at + 1u], arena[at + 2u], arena[at + 3u]);
//:else
    var four = vec4<f32>(0.0);
    if (d < DIM_V) { four.x = arena[at]; }
    if (d + 1u < DIM_V) { four.y = arena[at + 1u]; }
    if (d + 2u < DIM_V) { four.z = arena[at + 2u]; }
    if (d + 3u < DIM_V) { four.w = arena[at + 3u]; }
    return four;
//:end
}

//:if PROGRAM
// The modified score of a pair, from the scaled one; LOWEST where the mask leaves the pair out.
fn modified(query: Site, key: u32, scaled: f32) -> f32 {
    let at = with_key(query, key_position[key] * DILATION + query.qc % DILATION);
    var row = Row();
    if (!w_mask(at, row)) { return LOWEST; }
    var x = Pair();
    x.score = scaled;
//:if RPB
    x.score += arena[RPB + bias_entry(at)];
//:end
    return w_stages(at, row, x)[0];
}
//:end

// The score that the softmax takes of a pair in a box that not every query sees whole.
fn seen(row: u32, key: u32, is_window: bool, scaled: f32) -> f32 {
    let position = key_position[key];
    if (position.x < 0) { return LOWEST; }
    if (!is_window) { return scaled; }
    if (any(position < row_start[row]) || any(position >= row_end[row])) { return LOWEST; }
//:if PROGRAM
    return modified(site_of_query(row_vector[row]), key, scaled);
//:else
    return scaled;
//:end
}

@compute @workgroup_size($THREADS$)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = i32(group.y) / HEADS;
    let h = i32(group.y) % HEADS;
    let cut = query_cut(i32(group.x));
    if (!cut.is_there) { return; }
    let residue = cut.residue;
    let first = cut.first;
    let last = cut.last;
    let spans_first = windows(residue + DILATION * first);
    let spans_last = windows(residue + DILATION * last);
    let union_start = spans_first.start;
    let union_end = spans_last.end;
    let common_start = spans_last.start;
    let common_end = spans_first.end;

    let row_group = lane / COLUMN_GROUPS;
    let column_group = lane % COLUMN_GROUPS;
    if (lane < 64u) {
        let i = i32(lane);
        let offset = offset_in(i, QUERY_TILE);
        // Rows beyond the box are its last, and are not written.
        let qc = residue + DILATION * min(first + offset, last);
        let span = windows(qc);
        row_vector[lane] = query_vector(b, h, qc);
        row_start[lane] = span.start;
        row_end[lane] = span.end;
    }
    workgroupBarrier();
//:if RESIDENT
    for (var i = lane; i < 16u * DIMS; i += $THREADS$u) { queries[i] = four_queries(i % 16u, i / 16u); }
//:end
    // Of the row that this thread keeps: the running maximum, and the sum of exponentials under it.
    var peak = LOWEST;
    var total = 0.0;
$DECLARE_OUTPUT$

    let tiles = walk_of(union_start, union_end, KEY_TILE);
    let window_tiles = tiles.x * tiles.y * tiles.z;
    for (var tile = 0; tile < window_tiles + ADDITIONAL_TILES; tile++) {
        let is_window = tile < window_tiles;
        let start = union_start + KEY_TILE * step_of(tile, tiles);
        let end = start + KEY_TILE;
        // A box that is clipped has cells without a key.
        let is_full = is_window && KEY_TILE.x * KEY_TILE.y * KEY_TILE.z == 32 && all(common_start <= start) && all(end <= common_end);
        workgroupBarrier();
        if (lane == 0u) { atomicStore(&is_odd, 0u); }
        if (lane < 32u) {
            let i = i32(lane);
            let offset = offset_in(i, KEY_TILE);
            let position = start + offset;
            let inside = has_cell(i, KEY_TILE) && all(position < union_end);
            let kc = residue + DILATION * min(position, union_end - 1);
            let k = (kc.x * KEY_SHAPE.y + kc.y) * KEY_SHAPE.z + kc.z;
            key_vector[lane] = u32((b * KEYS + k) * HEADS_KV + h / PER_KV);
            key_position[lane] = select(vec3<i32>(-1), position, vec3<bool>(inside));
//:if ADDITIONAL
            if (!is_window) {
                let n = (tile - window_tiles) * 32 + i;
                let at = b * ADDITIONAL + min(n, ADDITIONAL - 1);
                key_vector[lane] = u32(BATCH * KEYS * HEADS_KV + at * HEADS_KV + h / PER_KV);
                key_position[lane] = select(vec3<i32>(-1), vec3<i32>(0), n < ADDITIONAL);
            }
//:end
        }
        workgroupBarrier();

$DECLARE_SCORES$
        for (var part = 0u; part < DIMS; part += CHUNK) {
            for (var i = lane; i < 8u * CHUNK; i += $THREADS$u) { others[i] = four_keys(i % 8u, part + i / 8u); }
//:if !RESIDENT
            for (var i = lane; i < 16u * CHUNK; i += $THREADS$u) { queries[i] = four_queries(i % 16u, part + i / 16u); }
//:end
            workgroupBarrier();
            for (var d = 0u; d < CHUNK; d++) {
$MULTIPLY_SCORES$
            }
            workgroupBarrier();
        }
$STORE_SCORES$
        workgroupBarrier();
        if ($IS_EDITED$) {
            for (var cell = lane; cell < 512u; cell += $THREADS$u) {
                var four = weights[cell];
                for (var r = 0u; r < 4u; r++) {
                    four[r] = seen(4u * (cell % 16u) + r, cell / 16u, is_window, four[r]);
                }
                weights[cell] = four;
            }
        }
        workgroupBarrier();

        if (lane < 64u) {
            let cell = lane / 4u;
            let part = lane % 4u;
            var highest = peak;
            for (var key = 0u; key < 32u; key++) {
                let x = weights[key * 16u + cell][part];
                if (x > highest) { highest = x; }
            }
            let shrink = exp(peak - highest);
            total *= shrink;
            for (var key = 0u; key < 32u; key++) {
                let x = weights[key * 16u + cell][part];
                // A NaN is no peak, and makes the sum NaN. A score of -inf has a weight, which is 0.
                let weight = select(exp(x - highest), bitcast<f32>(ABSENT | zero), x == LOWEST);
                weights[key * 16u + cell][part] = weight;
                total += weight;
            }
            peak = highest;
            factor[lane] = shrink;
        }
        workgroupBarrier();
$SHRINK_OUTPUT$
        for (var part = 0u; part < 32u; part += VALUE_KEYS) {
            for (var i = lane; i < 128u; i += $THREADS$u) {
                let four = four_values(part + i / VALUE_QUARTERS, i % VALUE_QUARTERS);
                if (!all(abs(four) <= vec4<f32>(-LOWEST))) { atomicStore(&is_odd, 1u); }
                others[i] = four;
            }
            workgroupBarrier();
            if (atomicLoad(&is_odd) == 0u) {
                for (var key = 0u; key < VALUE_KEYS; key++) {
$MULTIPLY_VALUES$
                }
            } else {
                for (var key = 0u; key < VALUE_KEYS; key++) {
$MULTIPLY_ODD_VALUES$
                }
            }
            workgroupBarrier();
        }
    }

    if (lane < 64u) {
        let is_alive = !(total == 0.0);
        factor[lane] = select(0.0, 1.0 / total, is_alive);
        let i = i32(lane);
        let offset = offset_in(i, QUERY_TILE);
        let is_row = has_cell(i, QUERY_TILE) && all(first + offset <= last);
//:if TO_LSE
        if (is_row) {
            arena[TO_LSE + row_vector[lane]] = select(-inf(), peak + f_log(total), is_alive);
        }
//:end
        // From here on a row that is none has no vector.
        if (!is_row) { row_vector[lane] = 0xffffffffu; }
    }
    workgroupBarrier();
//:if TO_OUT
$WRITE_OUTPUT$
//:end
}
