// Softmax over boxes: a workgroup takes a box of ROW_COUNT queries of a head, and walks the boxes of COLUMN_COUNT keys that
// their windows meet. A thread has 8 rows, every ROW_GROUPS-th, by every COLUMN_GROUPS-th key of the scores, and by one or
// two quarters of four of the output. Queries and keys come through workgroup memory a part of their elements at a time,
// values and weights a few keys at a time, and what comes next is on its way while a part is multiplied. Vectors lie there
// as in memory, an odd number of cells apart, so that threads that read side by side read from other banks.
// Scores are in bits (times log2 e), so that a weight is a power of two. Boxes that every query sees whole need no mask.

var<workgroup> staged: array<vec4<f32>, $STAGED_CELLS$>;
var<workgroup> row_vector: array<u32, ROW_COUNT>;
// What a row sees of a box, by axis: where it begins, and where it ends.
var<workgroup> row_low: array<u32, ROW_COUNT>;
var<workgroup> row_high: array<u32, ROW_COUNT>;
// The vectors of a box and of the next, and where the cells of a box are in it.
var<workgroup> key_vector: array<u32, 2u * COLUMN_COUNT>;
var<workgroup> key_place: array<u32, COLUMN_COUNT>;
// Whether a value was infinite or NaN: from then on pairs that are masked may not be multiplied with 0.
var<workgroup> is_odd: atomic<u32>;

// What a workgroup walks.
struct Walk {
    b: i32,
    h: i32,
    residue: vec3<i32>,
    start: vec3<i32>,
    end: vec3<i32>,
    steps: vec3<i32>,
    window_steps: i32,
}

// The vector of a cell's key; of one that the box has where the cell has none.
fn key_of(walk: Walk, step: i32, cell: u32) -> u32 {
//:if ADDITIONAL
    if (step >= walk.window_steps) {
        let n = (step - walk.window_steps) * i32(COLUMN_COUNT) + i32(cell);
        return additional_vector_at(walk.b, walk.h, min(n, ADDITIONAL - 1));
    }
//:end
    let start = walk.start + KEY_TILE * step_of(step, walk.steps);
    let position = min(start + offset_in(i32(cell), KEY_TILE), walk.end - 1);
    return key_vector_at(walk.b, walk.h, walk.residue + DILATION * position);
}

//:if ADDITIONAL
// Where a cell of a box is in it; additional keys are in no place of their own, and seen by all.
fn place_of(walk: Walk, step: i32, cell: u32) -> u32 {
    let n = (step - walk.window_steps) * i32(COLUMN_COUNT) + i32(cell);
    return select(select(NOWHERE, 0u, n < ADDITIONAL), key_place[cell], step < walk.window_steps);
}
//:end

//:if PROGRAM
// The modified score of a pair in bits, from the scaled one; LOWEST where the mask leaves the pair out.
fn modified(query: Site, kc: vec3<i32>, scaled: f32) -> f32 {
    let at = with_key(query, kc);
    var row = Row();
    if (!w_mask(at, row)) { return LOWEST; }
    var x = Pair();
    x.score = scaled;
//:if RPB
    x.score += arena[RPB + bias_entry(at)];
//:end
    return LOG2_E * w_stages(at, row, x)[0];
}
//:end

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
    let cut = query_cut(i32(group.x));
    if (!cut.is_there) { return; }
    let spans_first = windows(cut.residue + DILATION * cut.first);
    let spans_last = windows(cut.residue + DILATION * cut.last);
    var walk: Walk;
    walk.b = i32(group.y) / HEADS;
    walk.h = i32(group.y) % HEADS;
    walk.residue = cut.residue;
    walk.start = spans_first.start;
    walk.end = spans_last.end;
    walk.steps = walk_of(walk.start, walk.end, KEY_TILE);
    walk.window_steps = walk.steps.x * walk.steps.y * walk.steps.z;
    let step_count = walk.window_steps + ADDITIONAL_TILES;

    let row_group = lane / COLUMN_GROUPS;
    let column_group = lane % COLUMN_GROUPS;
    var span = Spans();
    var is_row = false;
    if (lane < ROW_COUNT) {
        // Rows beyond the box are its last, and are not written.
        let offset = offset_in(i32(lane), QUERY_TILE);
        is_row = has_cell(i32(lane), QUERY_TILE) && all(cut.first + offset <= cut.last);
        let qc = cut.residue + DILATION * min(cut.first + offset, cut.last);
        span = windows(qc);
        row_vector[lane] = query_vector(walk.b, walk.h, qc);
    }
    for (var i = lane; i < COLUMN_COUNT; i += $THREADS$u) {
        let place = packed(vec3<u32>(offset_in(i32(i), KEY_TILE)));
        key_place[i] = select(NOWHERE, place, has_cell(i32(i), KEY_TILE));
        if (step_count > 0) { key_vector[i] = key_of(walk, 0, i); }
    }
    if (lane == 0u) { atomicStore(&is_odd, 0u); }
    workgroupBarrier();
    // Of this thread's rows: the running maximum, and this thread's part of the sum of weights under it.
$DECLARE_PEAKS$
$DECLARE_OUTPUT$
$DECLARE_AHEAD$
    if (step_count > 0) {
        let part = 0u;
        let parity = 0u;
$FETCH_PART$
    }

    for (var step = 0; step < step_count; step++) {
        let is_window = step < walk.window_steps;
        let start = walk.start + KEY_TILE * step_of(step, walk.steps);
        let is_full = is_window && IS_WHOLE
            && all(spans_last.start <= start) && all(start + KEY_TILE <= spans_first.end);
        let others = u32(step & 1) * COLUMN_COUNT;
        let nexts = COLUMN_COUNT - others;
        if (step + 1 < step_count) {
            for (var i = lane; i < COLUMN_COUNT; i += $THREADS$u) { key_vector[nexts + i] = key_of(walk, step + 1, i); }
        }
        if ($IS_EDITED$ && lane < ROW_COUNT) {
            let low = clamp(span.start - start, vec3<i32>(0), vec3<i32>(256));
            let high = clamp(span.end - start, vec3<i32>(0), vec3<i32>(256));
            row_low[lane] = select(0u, packed(vec3<u32>(low)), is_window);
            row_high[lane] = packed(select(vec3<u32>(512u), vec3<u32>(high) + 511u, vec3<bool>(is_window)));
        }

$DECLARE_SCORES$
        for (var now = 0u; now < DIMS; now += CHUNK) {
            workgroupBarrier();
$STAGE_PART$
            workgroupBarrier();
            if (now + CHUNK < DIMS) {
                let part = now + CHUNK;
                let parity = others;
$FETCH_PART$
            } else {
                let chunk = 0u;
$FETCH_VALUES$
            }
            for (var cell = 0u; cell < CHUNK / 4u; cell++) {
$MULTIPLY_SCORES$
            }
        }
//:if PROGRAM
        let scale = select(SCALE_IN_BITS, SCALE, is_window);
//:else
        let scale = SCALE_IN_BITS;
//:end
$SCALE_SCORES$
//:if PROGRAM
        if (is_window) {
            for (var group = 0u; group < FACTOR_GROUPS; group++) {
                workgroupBarrier();
$STORE_SCORES$
                workgroupBarrier();
                for (var i = lane; i < FACTOR_COLUMNS * 2u * ROW_GROUPS; i += $THREADS$u) {
                    let key = group * FACTOR_COLUMNS + i / (2u * ROW_GROUPS);
                    let first_row = i % ROW_GROUPS + i / ROW_GROUPS % 2u * 4u * ROW_GROUPS;
                    let at = i / (2u * ROW_GROUPS) * FACTOR_STRIDE + i % (2u * ROW_GROUPS);
                    let kc = cut.residue + DILATION * (start + offset_in(i32(key), KEY_TILE));
                    var four = staged[at];
                    for (var r = 0u; r < 4u; r++) {
                        let row = first_row + r * ROW_GROUPS;
                        if (is_between(key_place[key], row_low[row], row_high[row])) {
                            four[r] = modified(site_of_query(row_vector[row]), kc, four[r]);
                        } else {
                            four[r] = LOWEST;
                        }
                    }
                    staged[at] = four;
                }
                workgroupBarrier();
$LOAD_SCORES$
            }
        } else {
//:else
        if (!is_full) {
//:end
$MASK_SCORES$
        }
$HIGHEST$
//:if !SUBGROUPS
        workgroupBarrier();
$STORE_HIGHEST$
        workgroupBarrier();
$JOIN_HIGHEST$
//:end
$SOFTMAX$
        for (var chunk = 0u; chunk < COLUMN_COUNT / VECTOR_COLUMNS; chunk++) {
            workgroupBarrier();
            let group = chunk / (FACTOR_COLUMNS / VECTOR_COLUMNS);
            if (chunk % (FACTOR_COLUMNS / VECTOR_COLUMNS) == 0u) {
$STORE_SCORES$
            }
$STAGE_VALUES$
            workgroupBarrier();
            if (chunk + 1u < COLUMN_COUNT / VECTOR_COLUMNS) {
                let now = chunk;
                let chunk = now + 1u;
$FETCH_VALUES$
            } else if (step + 1 < step_count) {
                let part = 0u;
                let parity = nexts;
$FETCH_PART$
            }
            let factors = chunk % (FACTOR_COLUMNS / VECTOR_COLUMNS) * VECTOR_COLUMNS * FACTOR_STRIDE + row_group;
            if (atomicLoad(&is_odd) == 0u) {
                for (var first = 0u; first < VECTOR_COLUMNS; first += $UNROLLED$u) {
$MULTIPLY_VALUES$
                }
            } else {
                for (var column = 0u; column < VECTOR_COLUMNS; column++) {
$MULTIPLY_ODD_VALUES$
                }
            }
        }
    }

    // From here on a row that is none has no vector.
    if (lane < ROW_COUNT && !is_row) { row_vector[lane] = 0xffffffffu; }
    workgroupBarrier();
//:if !SUBGROUPS
$STORE_TOTAL$
    workgroupBarrier();
//:end
$JOIN_TOTAL$
//:if TO_LSE
$WRITE_LOGSUMEXPS$
//:end
//:if TO_OUT
$WRITE_OUTPUT$
//:end
}
