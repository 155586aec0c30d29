// Softmax with a query to an invocation, which holds it and its output, and boxes of 16 keys in workgroup memory whose
// elements all invocations read at once: the design of ONNX Runtime's shader, to measure the others against.

var<workgroup> keys: array<vec4<f32>, 16u * QUARTERS>;
var<workgroup> values: array<vec4<f32>, 16u * QUARTERS_V>;

fn four_of(at: u32, vector: u32, quarter: u32, dim: u32) -> vec4<f32> {
    var four = vec4<f32>(0.0);
    for (var e = 0u; e < 4u; e++) {
        if (4u * quarter + e < dim) { four[e] = arena[at + vector * dim + 4u * quarter + e]; }
    }
    return four;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let b = i32(group.y) / HEADS;
    let h = i32(group.y) % HEADS;
    let cut = query_cut(i32(group.x));
    if (!cut.is_there) { return; }
    let offset = offset_in(i32(lane), QUERY_TILE);
    let is_row = has_cell(i32(lane), QUERY_TILE) && all(cut.first + offset <= cut.last);
    let qc = cut.residue + DILATION * min(cut.first + offset, cut.last);
    let span = windows(qc);
    let vector = query_vector(b, h, qc);
    var query = array<vec4<f32>, QUARTERS>();
    for (var d = 0u; d < QUARTERS; d++) { query[d] = SCALE * four_of(Q, vector, d, DIM); }
    var output = array<vec4<f32>, QUARTERS_V>();
    var peak = LOWEST;
    var total = 0.0;

    let start = windows(cut.residue + DILATION * cut.first).start;
    let end = windows(cut.residue + DILATION * cut.last).end;
    let steps = walk_of(start, end, KEY_TILE);
    for (var step = 0; step < steps.x * steps.y * steps.z; step++) {
        let box_start = start + KEY_TILE * step_of(step, steps);
        workgroupBarrier();
        for (var i = lane; i < 16u * QUARTERS; i += 64u) {
            let position = min(box_start + offset_in(i32(i / QUARTERS), KEY_TILE), end - 1);
            keys[i] = four_of(K, key_vector_at(b, h, cut.residue + DILATION * position), i % QUARTERS, DIM);
        }
        for (var i = lane; i < 16u * QUARTERS_V; i += 64u) {
            let position = min(box_start + offset_in(i32(i / QUARTERS_V), KEY_TILE), end - 1);
            values[i] = four_of(V, key_vector_at(b, h, cut.residue + DILATION * position), i % QUARTERS_V, DIM_V);
        }
        workgroupBarrier();
        var scores = array<f32, 16>();
        var highest = peak;
        for (var key = 0u; key < 16u; key++) {
            let position = box_start + offset_in(i32(key), KEY_TILE);
            var sum = vec4<f32>(0.0);
            for (var d = 0u; d < QUARTERS; d++) { sum += query[d] * keys[key * QUARTERS + d]; }
            let is_seen = has_cell(i32(key), KEY_TILE) && all(position >= span.start) && all(position < span.end);
            scores[key] = select(LOWEST, (sum.x + sum.y) + (sum.z + sum.w), is_seen);
            if (scores[key] > highest) { highest = scores[key]; }
        }
        // The output is divided by the sum at every step.
        let before = total * exp(peak - highest);
        total = before;
        for (var key = 0u; key < 16u; key++) {
            if (scores[key] != LOWEST) { total += exp(scores[key] - highest); }
        }
        peak = highest;
        let factor = select(1.0 / total, 0.0, total == 0.0);
        for (var d = 0u; d < QUARTERS_V; d++) { output[d] *= before * factor; }
        for (var key = 0u; key < 16u; key++) {
            if (scores[key] == LOWEST) { continue; }
            let weight = exp(scores[key] - peak) * factor;
            for (var d = 0u; d < QUARTERS_V; d++) { output[d] += weight * values[key * QUARTERS_V + d]; }
        }
    }
    if (!is_row) { return; }
//:if TO_LSE
    arena[TO_LSE + vector] = select(peak + f_log(total), -inf(), total == 0.0);
//:end
//:if TO_OUT
    for (var d = 0u; d < DIM_V; d++) { arena[TO_OUT + vector * DIM_V + d] = output[d / 4u][d % 4u]; }
//:end
}
