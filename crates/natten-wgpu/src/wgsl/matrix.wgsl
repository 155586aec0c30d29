// Softmax over boxes by products of small matrices that a subgroup holds together: a workgroup takes a box of 64 queries
// of a head, 16 to each of four subgroups, and walks the boxes of 32 keys that their windows meet. The elements of such
// matrices are out of a lane's reach, so a subgroup stores its scores, its lanes turn them into weights row by row, and
// it loads those as a matrix of f16. The output stays in matrices. A row's peak follows its scores only once they are
// e^8 above it: as long as they are not, nothing has to be scaled, and the weights, at most e^8, are far from the largest
// number of f16. Where it moves, the output goes through the memory of the scores and back.

@group(0) @binding($QUERIES$) var<storage, read> packed_queries: array<vec4<f16>>;
@group(0) @binding($KEYS$) var<storage, read> packed_keys: array<vec4<f16>>;
@group(0) @binding($VALUES$) var<storage, read> packed_values: array<vec4<f16>>;
@group(0) @binding($OUTPUT$) var<storage, read_write> packed_output: array<vec2<u32>>;

// Drivers lay these out one behind the other, and load matrices from multiples of 16 bytes alone: every size is one.
// The keys of a box, and behind them the values; before the walk the queries. Rows are padded, so that eight of them
// begin in different banks.
var<workgroup> tiles: array<vec4<f16>, TILE_CELLS>;
// Of each row: scores, and parts of the output.
var<workgroup> scores: array<vec4<f32>, 64u * SCORE_STRIDE>;
var<workgroup> weights: array<vec4<f16>, 64u * WEIGHT_STRIDE>;
// The vectors of the keys that are fetched next.
var<workgroup> key_vector: array<u32, 32>;
// By axis and n: the cells of a box of keys that are before n along the axis.
var<workgroup> before: array<u32, 100>;
// Whether a peak moved; whether a value is infinite or NaN, which a masked pair may not see.
var<workgroup> has_moved: array<atomic<u32>, 4>;
var<workgroup> is_odd: array<atomic<u32>, 4>;
//:if LOOPS
var<workgroup> kept: array<vec4<f16>, 64u * KEY_STRIDE>;
//:end

// How far scores may be above their row's peak.
const SLACK = 8.0;

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

fn start_of(walk: Walk, step: i32) -> vec3<i32> { return walk.start + KEY_TILE * step_of(step, walk.steps); }

// The vector of a cell's key; of one that the box has where the cell has none.
fn key_of(walk: Walk, step: i32, cell: u32) -> u32 {
//:if ADDITIONAL
    if (step >= walk.window_steps) {
        let n = (step - walk.window_steps) * 32 + i32(cell);
        return additional_vector_at(walk.b, walk.h, min(n, ADDITIONAL - 1));
    }
//:end
    let position = min(start_of(walk, step) + offset_in(i32(cell), KEY_TILE), walk.end - 1);
    return key_vector_at(walk.b, walk.h, walk.residue + DILATION * position);
}

// The cells of a box that a row sees.
fn visible_of(walk: Walk, step: i32, span: Spans) -> u32 {
//:if ADDITIONAL
    if (step >= walk.window_steps) {
        let count = min(ADDITIONAL - (step - walk.window_steps) * 32, 32);
        return 0xffffffffu >> u32(32 - count);
    }
//:end
    let start = start_of(walk, step);
    let low = vec3<u32>(clamp(span.start - start, vec3<i32>(0), vec3<i32>(32)));
    let high = vec3<u32>(clamp(span.end - start, vec3<i32>(0), vec3<i32>(32)));
    return before[high.x] & ~before[low.x]
        & before[33u + high.y] & ~before[33u + low.y]
        & before[66u + high.z] & ~before[66u + low.z];
}

//:if PROGRAM
// The modified score of a pair, from the scaled one; LOWEST where the mask leaves the pair out.
fn modified(query: Site, kc: vec3<i32>, scaled: f32) -> f32 {
    let at = with_key(query, kc);
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

// Scales what a lane has of a row in a part of the output, and adds what infinite and NaN values make of it.
fn edit(walk: Walk, step: i32, row: u32, part: u32, column: u32, count: u32, shrink: f32, odd: u32, visible: u32) {
    for (var c = part; c < count; c += LANES) {
        let at = row * SCORE_STRIDE + c;
        var four = shrink * scores[at];
        if (odd != 0u) {
            for (var key = 0u; key < 32u; key++) {
                if (((visible >> key) & 1u) == 0u) { continue; }
                let cell = (key_of(walk, step, key) * VALUE_DIMS + column + 4u * c) / 4u;
                let value = vec4<f32>(packed_values[cell]);
                let weight = f32(weights[row * WEIGHT_STRIDE + key / 4u][key % 4u]);
                four += select(weight * value, vec4<f32>(0.0), abs(value) <= vec4<f32>(LARGEST_HALF));
            }
        }
        scores[at] = four;
    }
}

// Writes what a lane has of a row in a part of the output.
fn write(row: u32, part: u32, column: u32, count: u32, factor: f32, vector: u32) {
    for (var c = part; c < count; c += LANES) {
        let four = factor * scores[row * SCORE_STRIDE + c];
        packed_output[(vector * VALUE_DIMS + column) / 4u + c] = vec2<u32>(
            to_half(four.x) | (to_half(four.y) << 16u), to_half(four.z) | (to_half(four.w) << 16u));
    }
}

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
    let cut = query_cut(i32(group.x));
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
    // A box that is not there has no rows either. It goes through everything: matrices are for all lanes at once.
    let step_count = select(0, walk.window_steps + ADDITIONAL_STEPS, cut.is_there);

    // The row that this lane shares with its neighbours. Rows beyond the box are its last, and are not written.
    let row = 16u * subgroup + member / LANES;
    let part = member % LANES;
    let offset = offset_in(i32(row), QUERY_TILE);
    let is_row = has_cell(i32(row), QUERY_TILE) && all(cut.first + offset <= cut.last);
    let qc = cut.residue + DILATION * min(cut.first + offset, cut.last);
    let span = windows(qc);
    let query = query_vector(walk.b, walk.h, qc);
//:if PROGRAM
    let site = site_of_query(query);
//:end

    for (var i = lane; i < 99u; i += $THREADS$u) {
        var cells = 0u;
        for (var cell = 0; cell < KEY_TILE.x * KEY_TILE.y * KEY_TILE.z; cell++) {
            if (offset_in(cell, KEY_TILE)[i / 33u] < i32(i % 33u)) { cells |= 1u << u32(cell); }
        }
        before[i] = cells;
    }
    if (lane == 0u) { atomicStore(&is_odd[0], 0u); }
    if (lane < 32u && step_count > 0) { key_vector[lane] = key_of(walk, 0, lane); }
    for (var i = lane; i < 64u * KEY_CELLS; i += $THREADS$u) {
        let place = cut.first + offset_in(i32(i / KEY_CELLS), QUERY_TILE);
        let vector = query_vector(walk.b, walk.h, cut.residue + DILATION * min(place, cut.last));
        let four = packed_queries[vector * KEY_CELLS + i % KEY_CELLS];
        tiles[i / KEY_CELLS * KEY_STRIDE + i % KEY_CELLS] = four;
//:if LOOPS
        kept[i / KEY_CELLS * KEY_STRIDE + i % KEY_CELLS] = four;
//:end
    }
    workgroupBarrier();
$LOAD_QUERIES$
$DECLARE_OUTPUT$
    var peak = LOWEST;
    // Of this lane's part of the row.
    var total = 0.0;
$DECLARE_AHEAD$
    if (step_count > 0) {
$FETCH$
    }

    for (var step = 0; step < step_count; step++) {
        // Everyone is done with the keys and the values before.
        workgroupBarrier();
$STAGE$
        if (lane < 32u) { key_vector[lane] = key_of(walk, min(step + 1, step_count - 1), lane); }
        if (lane == 0u) { atomicStore(&has_moved[0], 0u); }
        workgroupBarrier();
        // What comes next is on its way while this is multiplied.
        if (step + 1 < step_count) {
$FETCH$
        }
$MULTIPLY_SCORES$
        workgroupBarrier();
        let odd = atomicLoad(&is_odd[0]);
        let start = start_of(walk, step);
        let is_full = step < walk.window_steps && IS_WHOLE && all(spans_last.start <= start)
            && all(start + KEY_TILE <= spans_first.end);
        var visible = 0xffffffffu;
        if (!is_full) { visible = visible_of(walk, step, span); }
//:if PROGRAM
        if (step < walk.window_steps) {
            for (var i = 0u; i < 32u / LANES; i++) {
                let key = 4u * (i / 4u * LANES + part) + i % 4u;
                let at = row * SCORE_STRIDE + key / 4u;
                if (((visible >> key) & 1u) != 0u) {
                    let kc = cut.residue + DILATION * (start + offset_in(i32(key), KEY_TILE));
                    let x = modified(site, kc, SCALE * scores[at][key % 4u]);
                    scores[at][key % 4u] = x;
                    if (x == LOWEST) { visible &= ~(1u << key); }
                }
            }
            // Each lane has looked at its own keys.
$JOIN_VISIBLE$
        }
        let scale = select(SCALE, 1.0, step < walk.window_steps);
//:else
        let scale = SCALE;
//:end
$LOAD_SCORES$
//:if PROGRAM
        {
//:else
        if (!is_full) {
//:end
            let mine = visible >> (4u * part);
$MASK_SCORES$
        }
        var highest = LOWEST;
$HIGHEST$
        let moves = highest > peak + SLACK;
        // Before the first score there is nothing to scale.
        if (moves && peak > LOWEST) { atomicStore(&has_moved[0], 1u); }
        let shrink = select(1.0, exp(peak - highest), moves);
        peak = select(peak, highest, moves);
        total *= shrink;
$WEIGHTS$
        workgroupBarrier();
        if (lane == 0u) { atomicStore(&is_odd[0], 0u); }
        if ((odd | atomicLoad(&has_moved[0])) != 0u) {
$EDIT_OUTPUT$
        }
$MULTIPLY_VALUES$
    }

    workgroupBarrier();
$JOIN_TOTAL$
    let is_alive = !(total == 0.0);
    let factor = select(0.0, 1.0 / total, is_alive);
    if (is_row && part == 0u) { arena[TO_LSE + query] = select(-inf(), peak + f_log(total), is_alive); }
$WRITE_OUTPUT$
}
