// Softmax over boxes: a workgroup takes a box of ROW_COUNT queries of a head, and walks the boxes of TILE_KEYS keys that
// their windows meet, scores and products in register tiles of 8 rows. Boxes that every query sees whole need no mask.
// Row g of a thread's tile is row 8 * row_group + g of the box; its columns are next to each other among the keys, and
// in two quarters of four among the values' elements.

var<workgroup> queries: array<vec4<f32>, $QUERY_CELLS$>;
// Keys, or values, of a part of the tile.
var<workgroup> others: array<vec4<f32>, $OTHER_CELLS$>;
// Scores, and then weights: [key][row].
var<workgroup> weights: array<vec4<f32>, 16u * TILE_KEYS>;
var<workgroup> row_vector: array<u32, 64>;
var<workgroup> row_start: array<vec3<i32>, 64>;
var<workgroup> row_end: array<vec3<i32>, 64>;
//:if !SUBGROUPS
var<workgroup> factor: array<f32, 64>;
//:end
var<workgroup> key_vector: array<u32, TILE_KEYS>;
// Of a key's position beyond the window: one that no window has.
var<workgroup> key_position: array<vec3<i32>, TILE_KEYS>;

// Whether a value of this part is infinite or NaN: then pairs that are masked may not be multiplied with 0.
var<workgroup> is_odd: atomic<u32>;
// The weight of a pair that does not count: -0, which adds nothing and can be told from a weight that underflows.
const ABSENT: u32 = 0x80000000u;

// Four numbers one behind the other, and a number to a place.
//:if WIDE
fn four_at(at: u32) -> vec4<f32> { return arena[at / 4u]; }
fn put(at: u32, x: f32) { arena[at / 4u][at % 4u] = x; }
//:else
fn four_at(at: u32) -> vec4<f32> { return vec4<f32>(arena[at], arena[at + 1u], arena[at + 2u], arena[at + 3u]); }
fn put(at: u32, x: f32) { arena[at] = x; }
//:end

// Four elements of a vector, those behind its end 0.
fn four_of(at: u32, d: u32, dim: u32) -> vec4<f32> {
    if (d + 4u <= dim) { return four_at(at + d); }
    var four = vec4<f32>(0.0);
//:if !WIDE
    if (d < dim) { four.x = arena[at + d]; }
    if (d + 1u < dim) { four.y = arena[at + d + 1u]; }
    if (d + 2u < dim) { four.z = arena[at + d + 2u]; }
//:end
    return four;
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
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
//:if SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
//:else
    @builtin(local_invocation_index) lane: u32,
//:end
) {
//:if SUBGROUPS
    let lane = subgroup * SUBGROUP + member;
//:end
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
$LOAD_ALL_QUERIES$
//:end
//:if SUBGROUPS
    // Of this thread's rows: the running maximum, and this thread's part of the sum of exponentials under it.
$DECLARE_PEAKS$
//:else
    // Of the row that this thread keeps: the running maximum, and the sum of exponentials under it.
    var peak = LOWEST;
    var total = 0.0;
//:end
$DECLARE_OUTPUT$

    let tiles = walk_of(union_start, union_end, KEY_TILE);
    let window_tiles = tiles.x * tiles.y * tiles.z;
    for (var tile = 0; tile < window_tiles + ADDITIONAL_TILES; tile++) {
        let is_window = tile < window_tiles;
        let start = union_start + KEY_TILE * step_of(tile, tiles);
        let end = start + KEY_TILE;
        // A box that is clipped has cells without a key.
        let is_full = is_window && KEY_TILE.x * KEY_TILE.y * KEY_TILE.z == i32(TILE_KEYS) && all(common_start <= start) && all(end <= common_end);
        workgroupBarrier();
        if (lane == 0u) { atomicStore(&is_odd, 0u); }
        if (lane < TILE_KEYS) {
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
                let n = (tile - window_tiles) * i32(TILE_KEYS) + i;
                let at = b * ADDITIONAL + min(n, ADDITIONAL - 1);
                key_vector[lane] = u32(BATCH * KEYS * HEADS_KV + at * HEADS_KV + h / PER_KV);
                key_position[lane] = select(vec3<i32>(-1), vec3<i32>(0), n < ADDITIONAL);
            }
//:end
        }
        workgroupBarrier();

$DECLARE_SCORES$
        for (var part = 0u; part < DIMS; part += CHUNK) {
$LOAD_KEYS$
//:if !RESIDENT
$LOAD_QUERIES$
//:end
            workgroupBarrier();
            for (var d = 0u; d < CHUNK; d++) {
$MULTIPLY_SCORES$
            }
            workgroupBarrier();
        }
//:if SUBGROUPS
        if ($IS_EDITED$) {
$STORE_SCORES$
            workgroupBarrier();
            for (var cell = lane; cell < 16u * TILE_KEYS; cell += $THREADS$u) {
                var four = weights[cell];
                for (var r = 0u; r < 4u; r++) {
                    four[r] = seen(4u * (cell % 16u) + r, cell / 16u, is_window, four[r]);
                }
                weights[cell] = four;
            }
            workgroupBarrier();
$LOAD_SCORES$
        }
$SOFTMAX$
$STORE_SCORES$
        workgroupBarrier();
//:else
$STORE_SCORES$
        workgroupBarrier();
        if ($IS_EDITED$) {
            for (var cell = lane; cell < 16u * TILE_KEYS; cell += $THREADS$u) {
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
            for (var key = 0u; key < TILE_KEYS; key++) {
                let x = weights[key * 16u + cell][part];
                if (x > highest) { highest = x; }
            }
            let shrink = exp(peak - highest);
            total *= shrink;
            for (var key = 0u; key < TILE_KEYS; key++) {
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
//:end
        for (var part = 0u; part < TILE_KEYS; part += VALUE_KEYS) {
            for (var i = lane; i < VALUE_KEYS * VALUE_QUARTERS; i += $THREADS$u) {
                let at = V + key_vector[part + i / VALUE_QUARTERS] * DIM_V;
                let four = four_of(at, 4u * (i % VALUE_QUARTERS), DIM_V);
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
        let i = i32(lane);
        let offset = offset_in(i, QUERY_TILE);
        let is_row = has_cell(i, QUERY_TILE) && all(first + offset <= last);
//:if !SUBGROUPS
        let is_alive = !(total == 0.0);
        factor[lane] = select(0.0, 1.0 / total, is_alive);
//:if TO_LSE
        if (is_row) { put(TO_LSE + row_vector[lane], select(-inf(), peak + f_log(total), is_alive)); }
//:end
//:end
        // From here on a row that is none has no vector.
        if (!is_row) { row_vector[lane] = 0xffffffffu; }
    }
    workgroupBarrier();
//:if SUBGROUPS
$FINISH_ROWS$
//:if TO_LSE
$WRITE_LOGSUMEXPS$
//:end
//:end
//:if TO_OUT
$WRITE_OUTPUT$
//:end
}
