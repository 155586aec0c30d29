// Gradients of softmax over boxes by products of small matrices that a subgroup holds together. Of a query or of a key: a
// workgroup takes a box of 64 of one side, the rows, 16 to each of four subgroups, and walks boxes of 32 of the other
// side, the columns. The first vectors of both are those that are multiplied to scores, queries and keys; the second are
// those that are multiplied to gradients of weights, the output's gradients and the values. Rows stay in matrices, and so
// do their gradients. Scores and gradients of weights go through workgroup memory, where lanes make factors of f16 of
// them: weights, and gradients of scores.
//
// Gradients may be of any size: each row multiplies its gradients of scores by a power of two of its own, its unit, which
// brings them to where f16 is fine. Units follow the largest gradient that a row has met; where one moves, what the row
// has added up goes through the memory of the scores and back.
$BINDINGS$
// Drivers lay these out one behind the other, and load matrices from multiples of 16 bytes alone: every size is one.
// The first vectors of a box's columns, and behind them the second; before the walk the rows.
var<workgroup> tiles: array<vec4<f16>, TILE_CELLS>;
// Of each row: scores, gradients of weights, and parts of what is added up.
var<workgroup> scores: array<vec4<f32>, SCORE_CELLS>;
// Of each row: weights, and behind those of all rows gradients of scores, where both are needed.
var<workgroup> weights: array<vec4<f16>, WEIGHT_CELLS>;
var<workgroup> row_vector: array<u32, 64>;
// The vectors of the columns that are fetched next.
var<workgroup> column_vector: array<u32, 32>;
//:if OF_KEYS
// Of the columns' queries: logsumexps, what gradients of weights are shifted by, and those whose rows are dead.
var<workgroup> peaks: array<vec4<f32>, 8>;
var<workgroup> shifts: array<vec4<f32>, 8>;
var<workgroup> dead: array<atomic<u32>, 4>;
//:end
// By axis and n: the cells of a box of columns that are before n along the axis.
var<workgroup> before: array<u32, 100>;
// Whether a unit moved; whether a column's number is infinite or NaN, which a masked pair may not see.
var<workgroup> has_moved: array<atomic<u32>, 4>;
var<workgroup> is_odd: array<atomic<u32>, 4>;

// Weights are at most 1, and small ones of f16 are not fine.
const WEIGHT_UNIT = 1024.0;
// Gradients of scores, times their unit, come to 8 at least where the unit is chosen, and never beyond this.
const MOST_GRAD = 32768.0;

// The unit with which a gradient comes to 8 at least, and less than 16.
fn unit_of(grad: f32) -> f32 {
    let exponent = bitcast<u32>(grad) >> 23u;
    return bitcast<f32>(clamp(257u - exponent, 1u, 227u) << 23u);
}

// What a workgroup walks.
struct Walk {
    b: i32,
    h: i32,
    residue: vec3<i32>,
    start: vec3<i32>,
    end: vec3<i32>,
    steps: vec3<i32>,
    // Boxes; of keys, every query head that shares them walks so many.
    boxes: i32,
}

fn start_of(walk: Walk, step: i32) -> vec3<i32> {
    return walk.start + COLUMN_TILE * step_of(step % max(walk.boxes, 1), walk.steps);
}

// The vector of a cell's column; of one that the box has where the cell has none.
fn column_of(walk: Walk, step: i32, cell: u32) -> u32 {
    let position = min(start_of(walk, step) + offset_in(i32(cell), COLUMN_TILE), walk.end - 1);
    let coordinates = walk.residue + DILATION * position;
//:if OF_KEYS
    return query_vector(walk.b, walk.h + step / max(walk.boxes, 1), coordinates);
//:else
    return key_vector_at(walk.b, walk.h, coordinates);
//:end
}

// The cells of a box that a row has pairs with.
fn visible_of(start: vec3<i32>, span: Spans) -> u32 {
    let low = vec3<u32>(clamp(span.start - start, vec3<i32>(0), vec3<i32>(32)));
    let high = vec3<u32>(clamp(span.end - start, vec3<i32>(0), vec3<i32>(32)));
    return before[high.x] & ~before[low.x]
        & before[33u + high.y] & ~before[33u + low.y]
        & before[66u + high.z] & ~before[66u + low.z];
}

$EDITS$
$MATRICES$
@compute @workgroup_size($THREADS$)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
//:if LOOPS
    @builtin(local_invocation_index) lane: u32,
//:else
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
//:end
) {
//:if LOOPS
    let subgroup = lane / SUBGROUP;
    let member = lane % SUBGROUP;
//:else
    let lane = subgroup * SUBGROUP + member;
//:end
    var walk: Walk;
//:if OF_KEYS
    let cut = key_cut(i32(group.x));
    let spans_first = viewers(cut.residue + DILATION * cut.first);
    let spans_last = viewers(cut.residue + DILATION * cut.last);
    walk.b = i32(group.y) / HEADS_KV;
    walk.h = i32(group.y) % HEADS_KV * PER_KV;
//:else
    let cut = query_cut(i32(group.x));
    let spans_first = windows(cut.residue + DILATION * cut.first);
    let spans_last = windows(cut.residue + DILATION * cut.last);
    walk.b = i32(group.y) / HEADS;
    walk.h = i32(group.y) % HEADS;
//:end
    walk.residue = cut.residue;
    walk.start = spans_first.start;
    walk.end = spans_last.end;
    walk.steps = walk_of(walk.start, walk.end, COLUMN_TILE);
    walk.boxes = walk.steps.x * walk.steps.y * walk.steps.z;
    // A box that is not there has no rows either. It goes through everything: matrices are for all lanes at once.
//:if OF_KEYS
    let step_count = select(0, walk.boxes * PER_KV, cut.is_there);
//:else
    let step_count = select(0, walk.boxes, cut.is_there);
//:end

    // The row that this lane shares with its neighbours. Rows beyond the box are its last, and are not written.
    let row = 16u * subgroup + member / LANES;
    let part = member % LANES;
    let offset = offset_in(i32(row), ROW_TILE);
    let is_row = has_cell(i32(row), ROW_TILE) && all(cut.first + offset <= cut.last);
    let coordinates = cut.residue + DILATION * min(cut.first + offset, cut.last);
//:if OF_KEYS
    let span = viewers(coordinates);
    let vector = key_vector_at(walk.b, walk.h, coordinates);
//:else
    let span = windows(coordinates);
    let vector = query_vector(walk.b, walk.h, coordinates);
    let numbers = numbers_of(vector);
//:end
    if (part == 0u) { row_vector[row] = vector; }
    for (var i = lane; i < 99u; i += $THREADS$u) {
        var cells = 0u;
        for (var cell = 0; cell < COLUMN_TILE.x * COLUMN_TILE.y * COLUMN_TILE.z; cell++) {
            if (offset_in(cell, COLUMN_TILE)[i / 33u] < i32(i % 33u)) { cells |= 1u << u32(cell); }
        }
        before[i] = cells;
    }
    if (lane == 0u) {
        atomicStore(&is_odd[0], 0u);
//:if OF_KEYS
        atomicStore(&dead[0], 0u);
//:end
    }
    if (lane < 32u && step_count > 0) { column_vector[lane] = column_of(walk, 0, lane); }
    workgroupBarrier();
$LOAD_ROWS$
$DECLARE_SUMS$
//:if TO_FIRST
    // What the row's gradients of scores are multiplied by; 0 as long as there is none.
    var unit = 0.0;
//:end
$DECLARE_AHEAD$
    if (step_count > 0) {
$FETCH$
    }

    for (var step = 0; step < step_count; step++) {
        // Everyone is done with the columns before.
        workgroupBarrier();
$STAGE$
        if (lane < 32u) { column_vector[lane] = column_of(walk, min(step + 1, step_count - 1), lane); }
        if (lane == 0u) { atomicStore(&has_moved[0], 0u); }
        workgroupBarrier();
        // What comes next is on its way while this is multiplied.
        if (step + 1 < step_count) {
$FETCH$
        }
$MULTIPLY_FIRST$
//:if TO_FIRST
//:if !APART
        workgroupBarrier();
$LOAD_SCORES$
        workgroupBarrier();
//:end
$MULTIPLY_SECOND$
//:end
        workgroupBarrier();
//:if APART
$LOAD_SCORES$
//:end
//:if TO_FIRST
$LOAD_GRADS$
//:end
        let odd = atomicLoad(&is_odd[0]);
        let start = start_of(walk, step);
        let is_full = IS_WHOLE && all(spans_last.start <= start) && all(start + COLUMN_TILE <= spans_first.end);
        var visible = 0xffffffffu;
        if (!is_full) { visible = visible_of(start, span); }
        // A dead row has no pairs.
//:if OF_KEYS
        visible &= ~atomicLoad(&dead[0]);
//:else
        if (numbers.z == 0.0) { visible = 0u; }
//:end
        // From scores to weights, and from the gradients of weights to those of scores.
$FACTORS$
        if (visible != 0xffffffffu) {
            let mine = visible >> (4u * part);
$MASK$
        }
//:if TO_SECOND
$STORE_WEIGHTS$
//:end
//:if TO_FIRST
        var highest = 0.0;
$HIGHEST$
        let moves = highest * unit > MOST_GRAD || (unit == 0.0 && highest > 0.0);
        var shrink = 1.0;
        if (moves) {
            let next = unit_of(highest);
            if (unit > 0.0) {
                shrink = next / unit;
                atomicStore(&has_moved[0], 1u);
            }
            unit = next;
        }
        let by = select(unit, 1.0, unit == 0.0);
$STORE_GRADS$
//:end
        // What is not finite is taken out of the products, and added to the rows that see it.
        if (odd != 0u) {
            for (var i = lane; i < 32u * (KEY_STRIDE + VALUE_STRIDE); i += $THREADS$u) {
                tiles[i] = select(vec4<f16>(), tiles[i], abs(tiles[i]) <= vec4<f16>(f16(LARGEST_HALF)));
            }
        }
        workgroupBarrier();
        if (lane == 0u) {
            atomicStore(&is_odd[0], 0u);
//:if OF_KEYS
            atomicStore(&dead[0], 0u);
//:end
        }
        if ((odd | atomicLoad(&has_moved[0])) != 0u) {
$EDIT_SUMS$
        }
$ADD$
    }

    workgroupBarrier();
$WRITE$
}
