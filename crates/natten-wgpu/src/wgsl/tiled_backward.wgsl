// Gradients of softmax over boxes. Of a query or of a key: a workgroup takes a box of ROW_COUNT of one side, the rows, and
// walks boxes of COLUMN_COUNT of the other side, the columns; scores and the gradients of weights are computed again in
// register tiles, as the forward pass does it. Of queries come the gradients of queries alone, of keys those of keys and
// values. Nothing is added up by two workgroups.

var<workgroup> staged: array<vec4<f32>, $STAGED_CELLS$>;
var<workgroup> row_vector: array<u32, ROW_COUNT>;
// What a row sees of a box, by axis: where it begins, and where it ends.
var<workgroup> row_low: array<u32, ROW_COUNT>;
var<workgroup> row_high: array<u32, ROW_COUNT>;
// The vectors of a box and of the next, and where the cells of a box are in it.
var<workgroup> column_vector: array<u32, 2u * COLUMN_COUNT>;
var<workgroup> column_place: array<u32, COLUMN_COUNT>;
// Of every pair's query, among rows or columns: its logsumexp in bits, and what its gradients of weights are shifted by.
var<workgroup> peak: array<f32, $QUERY_COUNT$>;
var<workgroup> shift: array<f32, $QUERY_COUNT$>;
// Whether there was a query without pairs, and whether an element of a column was infinite or NaN.
var<workgroup> has_dead: atomic<u32>;
var<workgroup> is_odd: atomic<u32>;

fn absent() -> f32 { return bitcast<f32>(ABSENT | zero); }
// A factor that counts.
fn present(x: f32) -> f32 { return select(x, 0.0, x == 0.0); }

// The numbers of a query's row: its logsumexp in bits, its shift, and whether it counts.
fn numbers_of(query: u32) -> vec3<f32> {
    let at = NUMBERS + query * (1u + 4u * STAGES);
    return vec3<f32>(LOG2_E * number_at(at + 1u), number_at(at + 3u), number_at(at));
}

// What a workgroup walks.
struct Walk {
    b: i32,
    first_head: i32,
    cut: Cut,
    start: vec3<i32>,
    end: vec3<i32>,
    steps: vec3<i32>,
    step_count: i32,
}

fn start_of(walk: Walk, step: i32) -> vec3<i32> {
    return walk.start + COLUMN_TILE * step_of(step % walk.step_count, walk.steps);
}

// The vector of a cell's column; of one that the box has where the cell has none.
fn column_of(walk: Walk, step: i32, cell: u32) -> u32 {
    let position = min(start_of(walk, step) + offset_in(i32(cell), COLUMN_TILE), walk.end - 1);
    let coordinates = walk.cut.residue + DILATION * position;
//:if OF_KEYS
    return query_vector(walk.b, walk.first_head + step / walk.step_count, coordinates);
//:else
    return key_vector_at(walk.b, walk.first_head, coordinates);
//:end
}

//:if PROGRAM
// The weight of a pair and the gradient of its score, from the scaled product; ABSENT where the mask leaves it out.
fn factors_of(query: u32, kc: vec3<i32>, scaled: f32, grad: f32) -> vec2<f32> {
    let at = with_key(site_of_query(query), kc);
    let row = load_row(query);
    if (!w_mask(at, row)) { return vec2<f32>(absent()); }
    var x = Pair();
    x.score = scaled;
    x.grad = grad;
//:if RPB
    x.score += number_at(RPB + bias_entry(at));
//:end
    return vec2<f32>(present(w_weight(at, row, x)[0]), present(w_grad_score(at, row, x)[0]));
}
//:end

@compute @workgroup_size($THREADS$)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var walk: Walk;
//:if OF_KEYS
    walk.b = i32(group.y) / HEADS_KV;
    walk.first_head = i32(group.y) % HEADS_KV * PER_KV;
    walk.cut = key_cut(i32(group.x));
    if (!walk.cut.is_there) { return; }
    let spans_first = viewers(walk.cut.residue + DILATION * walk.cut.first);
    let spans_last = viewers(walk.cut.residue + DILATION * walk.cut.last);
//:else
    walk.b = i32(group.y) / HEADS;
    walk.first_head = i32(group.y) % HEADS;
    walk.cut = query_cut(i32(group.x));
    if (!walk.cut.is_there) { return; }
    let spans_first = windows(walk.cut.residue + DILATION * walk.cut.first);
    let spans_last = windows(walk.cut.residue + DILATION * walk.cut.last);
//:end
    walk.start = spans_first.start;
    walk.end = spans_last.end;
    walk.steps = walk_of(walk.start, walk.end, COLUMN_TILE);
    walk.step_count = walk.steps.x * walk.steps.y * walk.steps.z;
//:if OF_KEYS
    let step_count = walk.step_count * PER_KV;
//:else
    let step_count = walk.step_count;
//:end

    let row_group = lane / COLUMN_GROUPS;
    let column_group = lane % COLUMN_GROUPS;
    var span = Spans();
    var is_row = false;
    if (lane == 0u) {
        atomicStore(&is_odd, 0u);
        atomicStore(&has_dead, 0u);
    }
    workgroupBarrier();
    if (lane < ROW_COUNT) {
        // Rows beyond the box are its last, and are not written.
        let offset = offset_in(i32(lane), ROW_TILE);
        is_row = has_cell(i32(lane), ROW_TILE) && all(walk.cut.first + offset <= walk.cut.last);
        let coordinates = walk.cut.residue + DILATION * min(walk.cut.first + offset, walk.cut.last);
//:if OF_KEYS
        span = viewers(coordinates);
        row_vector[lane] = key_vector_at(walk.b, walk.first_head, coordinates);
//:else
        span = windows(coordinates);
        row_vector[lane] = query_vector(walk.b, walk.first_head, coordinates);
        let numbers = numbers_of(row_vector[lane]);
        peak[lane] = numbers.x;
        shift[lane] = numbers.y;
        // A dead row has no pairs.
        if (numbers.z == 0.0) {
            span.end = span.start;
            atomicStore(&has_dead, 1u);
        }
//:end
    }
    for (var i = lane; i < COLUMN_COUNT; i += $THREADS$u) {
        let place = packed(vec3<u32>(offset_in(i32(i), COLUMN_TILE)));
        column_place[i] = select(NOWHERE, place, has_cell(i32(i), COLUMN_TILE));
        if (step_count > 0) { column_vector[i] = column_of(walk, 0, i); }
    }
    workgroupBarrier();
$DECLARE_OUTPUT$
$DECLARE_AHEAD$
    if (step_count > 0) {
        let part = 0u;
        let others = 0u;
$FETCH_SCORES$
    }

    for (var step = 0; step < step_count; step++) {
        let start = start_of(walk, step);
        let is_full = IS_WHOLE && all(spans_last.start <= start) && all(start + COLUMN_TILE <= spans_first.end);
        let others = u32(step & 1) * COLUMN_COUNT;
        let nexts = COLUMN_COUNT - others;
        if (step + 1 < step_count) {
            for (var i = lane; i < COLUMN_COUNT; i += $THREADS$u) {
                column_vector[nexts + i] = column_of(walk, step + 1, i);
            }
        }
//:if OF_KEYS
        // Its numbers are on their way while scores are computed.
        var numbers = vec3<f32>();
        if (lane < COLUMN_COUNT) { numbers = numbers_of(column_vector[others + lane]); }
//:end
        if (lane < ROW_COUNT) {
            row_low[lane] = packed(vec3<u32>(clamp(span.start - start, vec3<i32>(0), vec3<i32>(256))));
            row_high[lane] = packed(vec3<u32>(clamp(span.end - start, vec3<i32>(0), vec3<i32>(256)) + 511));
        }

$DECLARE_SCORES$
        for (var now = 0u; now < DIMS; now += CHUNK) {
            workgroupBarrier();
$STAGE_PART$
            workgroupBarrier();
            if (now + CHUNK < DIMS) {
                let part = now + CHUNK;
$FETCH_SCORES$
            } else {
                let part = 0u;
$FETCH_GRADS$
            }
            for (var cell = 0u; cell < CHUNK / 4u; cell++) {
$MULTIPLY_SCORES$
            }
        }
//:if OF_KEYS
        if (lane < COLUMN_COUNT) {
            peak[lane] = numbers.x;
            shift[lane] = numbers.y;
            let place = packed(vec3<u32>(offset_in(i32(lane), COLUMN_TILE)));
            let counts = has_cell(i32(lane), COLUMN_TILE) && numbers.z != 0.0;
            column_place[lane] = select(NOWHERE, place, counts);
            if (numbers.z == 0.0) { atomicStore(&has_dead, 1u); }
        }
//:end
        for (var now = 0u; now < DIMS_V; now += CHUNK) {
            workgroupBarrier();
$STAGE_PART$
            workgroupBarrier();
            if (now + CHUNK < DIMS_V) {
                let part = now + CHUNK;
$FETCH_GRADS$
            } else {
                let chunk = 0u;
//:if TO_SECOND
$FETCH_SECOND$
//:else
$FETCH_FIRST$
//:end
            }
            for (var cell = 0u; cell < CHUNK / 4u; cell++) {
$MULTIPLY_GRADS$
            }
        }
        // From scores to weights, and from the gradients of weights to those of scores.
        let is_plain = $IS_PLAIN$;
$FACTORS$
//:if TO_SECOND
        for (var chunk = 0u; chunk < COLUMN_COUNT / VECTOR_COLUMNS; chunk++) {
            workgroupBarrier();
            let group = chunk / (FACTOR_COLUMNS / VECTOR_COLUMNS);
            if (chunk % (FACTOR_COLUMNS / VECTOR_COLUMNS) == 0u) {
$STORE_WEIGHTS$
            }
$STAGE_VECTORS$
            workgroupBarrier();
            if (chunk + 1u < COLUMN_COUNT / VECTOR_COLUMNS) {
                let now = chunk;
                let chunk = now + 1u;
$FETCH_SECOND$
            } else {
//:if TO_FIRST
                let chunk = 0u;
$FETCH_FIRST$
//:else
                if (step + 1 < step_count) {
                    let part = 0u;
                    let others = nexts;
$FETCH_SCORES$
                }
//:end
            }
            let factors = chunk % (FACTOR_COLUMNS / VECTOR_COLUMNS) * VECTOR_COLUMNS * FACTOR_STRIDE + row_group;
            if (is_plain || atomicLoad(&is_odd) == 0u) {
                for (var first = 0u; first < VECTOR_COLUMNS; first += $UNROLLED$u) {
$MULTIPLY_SECOND$
                }
            } else {
                for (var column = 0u; column < VECTOR_COLUMNS; column++) {
$MULTIPLY_ODD_SECOND$
                }
            }
        }
//:end
//:if TO_FIRST
        for (var chunk = 0u; chunk < COLUMN_COUNT / VECTOR_COLUMNS; chunk++) {
            workgroupBarrier();
            let group = chunk / (FACTOR_COLUMNS / VECTOR_COLUMNS);
            if (chunk % (FACTOR_COLUMNS / VECTOR_COLUMNS) == 0u) {
$STORE_GRADS$
            }
$STAGE_VECTORS$
            workgroupBarrier();
            if (chunk + 1u < COLUMN_COUNT / VECTOR_COLUMNS) {
                let now = chunk;
                let chunk = now + 1u;
$FETCH_FIRST$
            } else if (step + 1 < step_count) {
                let part = 0u;
                let others = nexts;
$FETCH_SCORES$
            }
            let factors = chunk % (FACTOR_COLUMNS / VECTOR_COLUMNS) * VECTOR_COLUMNS * FACTOR_STRIDE + row_group;
            if (is_plain || atomicLoad(&is_odd) == 0u) {
                for (var first = 0u; first < VECTOR_COLUMNS; first += $UNROLLED$u) {
$MULTIPLY_FIRST$
                }
            } else {
                for (var column = 0u; column < VECTOR_COLUMNS; column++) {
$MULTIPLY_ODD_FIRST$
                }
            }
        }
//:end
    }

    workgroupBarrier();
    // From here on a row that is none has no vector.
    if (lane < ROW_COUNT && !is_row) { row_vector[lane] = 0xffffffffu; }
    workgroupBarrier();
$WRITE_OUTPUT$
}
