// Gradients of softmax over boxes. Of a query or of a key: a workgroup takes a box of 64 of one side, the rows, and walks
// boxes of 32 of the other side, the columns; scores and the gradients of weights are computed again in register tiles of
// 8 rows. Of queries come the gradients of queries alone, of keys those of keys and values. Nothing is added up by two
// workgroups.

// Elements of a part of the rows' vectors, and of the columns'.
var<workgroup> rows: array<vec4<f32>, 16u * CHUNK>;
var<workgroup> columns: array<vec4<f32>, 128>;
// What columns are multiplied with: [column][row].
var<workgroup> factors: array<vec4<f32>, 512>;
// Of every pair's query, among rows or columns: its logsumexp, and what its gradients of weights are shifted by.
var<workgroup> peak: array<f32, 64>;
var<workgroup> shift: array<f32, 64>;
var<workgroup> row_vector: array<u32, 64>;
// The columns that a row has a pair with.
var<workgroup> visible: array<u32, 64>;
var<workgroup> column_vector: array<u32, 32>;
// By axis and n: the cells of a box of columns that are before n along the axis.
var<workgroup> before: array<u32, 99>;
// Whether a row has no pair with a column; whether an element of a column is infinite or NaN.
var<workgroup> has_gaps: atomic<u32>;
var<workgroup> is_odd: atomic<u32>;
// An element of four rows; of four columns; four elements of a column.
fn four_rows(group: u32, d: u32, at: u32, dim: u32) -> vec4<f32> {
    if (d >= dim) { return vec4<f32>(0.0); }
    return vec4<f32>(
        arena[at + row_vector[4u * group] * dim + d],
        arena[at + row_vector[4u * group + 1u] * dim + d],
        arena[at + row_vector[4u * group + 2u] * dim + d],
        arena[at + row_vector[4u * group + 3u] * dim + d],
    );
}
fn four_columns(group: u32, d: u32, at: u32, dim: u32) -> vec4<f32> {
    if (d >= dim) { return vec4<f32>(0.0); }
    return vec4<f32>(
        arena[at + column_vector[4u * group] * dim + d],
        arena[at + column_vector[4u * group + 1u] * dim + d],
        arena[at + column_vector[4u * group + 2u] * dim + d],
        arena[at + column_vector[4u * group + 3u] * dim + d],
    );
}
fn four_elements(column: u32, quarter: u32, at: u32, dim: u32) -> vec4<f32> {
    let d = 4u * quarter;
    let place = at + column_vector[column] * dim + d;
    var four = vec4<f32>(0.0);
    if (d < dim) { four.x = arena[place]; }
    if (d + 1u < dim) { four.y = arena[place + 1u]; }
    if (d + 2u < dim) { four.z = arena[place + 2u]; }
    if (d + 3u < dim) { four.w = arena[place + 3u]; }
    return four;
}

@compute @workgroup_size($THREADS$)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
//:if OF_KEYS
    let b = i32(group.y) / HEADS_KV;
    let first_head = i32(group.y) % HEADS_KV * PER_KV;
    let cut = key_cut(i32(group.x));
//:else
    let b = i32(group.y) / HEADS;
    let h = i32(group.y) % HEADS;
    let cut = query_cut(i32(group.x));
//:end
    if (!cut.is_there) { return; }
    let row_group = lane / COLUMN_GROUPS;
    let column_group = lane % COLUMN_GROUPS;
    let first_column = column_group * $COLUMNS$u;
    var is_row = false;
    var span = Spans();
    if (lane < 64u) {
        // Rows beyond the box are its last, and are not written.
        let offset = offset_in(i32(lane), ROW_TILE);
        is_row = has_cell(i32(lane), ROW_TILE) && all(cut.first + offset <= cut.last);
        let coordinates = cut.residue + DILATION * min(cut.first + offset, cut.last);
//:if OF_KEYS
        span = viewers(coordinates);
        row_vector[lane] = key_vector_at(b, first_head, coordinates);
//:else
        span = windows(coordinates);
        row_vector[lane] = query_vector(b, h, coordinates);
        let numbers = numbers_of(row_vector[lane]);
        peak[lane] = numbers.x;
        shift[lane] = numbers.y;
        // A dead row has no pairs.
        if (numbers.z == 0.0) { span.end = span.start; }
//:end
    }
    for (var i = lane; i < 99u; i += $THREADS$u) {
        var cells = 0u;
        for (var cell = 0; cell < COLUMN_TILE.x * COLUMN_TILE.y * COLUMN_TILE.z; cell++) {
            if (offset_in(cell, COLUMN_TILE)[i / 33u] < i32(i % 33u)) { cells |= 1u << u32(cell); }
        }
        before[i] = cells;
    }
//:if OF_KEYS
    let start = viewers(cut.residue + DILATION * cut.first).start;
    let end = viewers(cut.residue + DILATION * cut.last).end;
//:else
    let start = windows(cut.residue + DILATION * cut.first).start;
    let end = windows(cut.residue + DILATION * cut.last).end;
//:end
    let steps = walk_of(start, end, COLUMN_TILE);
    let step_count = steps.x * steps.y * steps.z;
$DECLARE_OUTPUT$

//:if OF_KEYS
    for (var step = 0; step < step_count * PER_KV; step++) {
        let h = first_head + step / step_count;
        let box_start = start + COLUMN_TILE * step_of(step % step_count, steps);
//:else
    for (var step = 0; step < step_count; step++) {
        let box_start = start + COLUMN_TILE * step_of(step, steps);
//:end
        workgroupBarrier();
        if (lane == 0u) {
            atomicStore(&has_gaps, 0u);
            atomicStore(&is_odd, 0u);
        }
        if (lane < 32u) {
            let position = min(box_start + offset_in(i32(lane), COLUMN_TILE), end - 1);
            let coordinates = cut.residue + DILATION * position;
//:if OF_KEYS
            let query = query_vector(b, h, coordinates);
            let numbers = numbers_of(query);
            column_vector[lane] = query;
            peak[lane] = numbers.x;
            shift[lane] = numbers.y;
            peak[32u + lane] = numbers.z;
//:else
            column_vector[lane] = key_vector_at(b, h, coordinates);
//:end
        }
        workgroupBarrier();
        if (lane < 64u) {
            let low = vec3<u32>(clamp(span.start - box_start, vec3<i32>(0), vec3<i32>(32)));
            let high = vec3<u32>(clamp(span.end - box_start, vec3<i32>(0), vec3<i32>(32)));
            var cells = before[high.x] & ~before[low.x]
                & before[33u + high.y] & ~before[33u + low.y]
                & before[66u + high.z] & ~before[66u + low.z];
//:if OF_KEYS
            for (var c = 0u; c < 32u; c++) {
                if (peak[32u + c] == 0.0) { cells &= ~(1u << c); }
            }
//:end
            // What is added to a row that is not written does not matter.
            if (!is_row) { cells = 0xffffffffu; }
            visible[lane] = cells;
            if (cells != 0xffffffffu) { atomicStore(&has_gaps, 1u); }
        }

$DECLARE_SCORES$
        for (var part = 0u; part < DIMS; part += CHUNK) {
            for (var i = lane; i < 8u * CHUNK; i += $THREADS$u) { columns[i] = four_columns(i % 8u, part + i / 8u, $B1$, DIM); }
            for (var i = lane; i < 16u * CHUNK; i += $THREADS$u) { rows[i] = four_rows(i % 16u, part + i / 16u, $A1$, DIM); }
            workgroupBarrier();
            for (var d = 0u; d < CHUNK; d++) {
$MULTIPLY_SCORES$
            }
            workgroupBarrier();
        }
        for (var part = 0u; part < DIMS_V; part += CHUNK) {
            for (var i = lane; i < 8u * CHUNK; i += $THREADS$u) { columns[i] = four_columns(i % 8u, part + i / 8u, $B2$, DIM_V); }
            for (var i = lane; i < 16u * CHUNK; i += $THREADS$u) { rows[i] = four_rows(i % 16u, part + i / 16u, $A2$, DIM_V); }
            workgroupBarrier();
            for (var d = 0u; d < CHUNK; d++) {
$MULTIPLY_GRADS$
            }
            workgroupBarrier();
        }
        // From scores to weights, and from the gradients of weights to those of scores.
$FACTORS$
//:if TO_SECOND
$STORE_WEIGHTS$
        workgroupBarrier();
        for (var part = 0u; part < 32u; part += PART) {
            for (var i = lane; i < 128u; i += $THREADS$u) {
                let four = four_elements(part + i / QUARTERS, i % QUARTERS, $B2$, DIM_V);
                if (!all(abs(four) <= vec4<f32>(-LOWEST))) { atomicStore(&is_odd, 1u); }
                columns[i] = four;
            }
            workgroupBarrier();
            let odd = (atomicLoad(&is_odd) & atomicLoad(&has_gaps)) != 0u;
            if (odd) {
                for (var column = 0u; column < PART; column++) {
$MULTIPLY_ODD_SECOND$
                }
            } else {
                for (var column = 0u; column < PART; column++) {
$MULTIPLY_SECOND$
                }
            }
            workgroupBarrier();
        }
//:end
//:if TO_FIRST
$STORE_GRADS$
        workgroupBarrier();
        for (var part = 0u; part < 32u; part += PART) {
            for (var i = lane; i < 128u; i += $THREADS$u) {
                let four = four_elements(part + i / QUARTERS, i % QUARTERS, $B1$, DIM);
                if (!all(abs(four) <= vec4<f32>(-LOWEST))) { atomicStore(&is_odd, 1u); }
                columns[i] = four;
            }
            workgroupBarrier();
            let odd = (atomicLoad(&is_odd) & atomicLoad(&has_gaps)) != 0u;
            if (odd) {
                for (var column = 0u; column < PART; column++) {
$MULTIPLY_ODD_FIRST$
                }
            } else {
                for (var column = 0u; column < PART; column++) {
$MULTIPLY_FIRST$
                }
            }
            workgroupBarrier();
        }
//:end
    }

    workgroupBarrier();
    // From here on a row that is none has no vector.
    if (lane < 64u && !is_row) { row_vector[lane] = 0xffffffffu; }
    workgroupBarrier();
$WRITE_OUTPUT$
}
