// Stationary queries: an invocation takes a query of a head, and sweeps over its keys as often as the operation needs,
// for the stages, their tangents, the output, the cotangents of the stages, the gradient of the query. A row without a
// pair that counts, or with a logsumexp of -inf, is dead: its output and every derivative are 0.

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = (group.y * groups.x + group.x) * 64u + lane;
    if (number >= ROWS) { return; }
    let query = site_of_query(number);
    var row = Row();
    row.alive = true;
//:if LSE
    row.stage[$LOGSUMEXP$] = arena[LSE + number];
//:end
//:if DL
    row.grad_logsumexp = arena[DL + number];
//:end
//:if DLT
    row.grad_logsumexp_t = arena[DLT + number];
//:end
//:if SWEEP_STAGES
    var seen = false;
    var running = array<R, STAGES>();
    var peak = array<R, STAGES>();
    for (var k = 0u; k < STAGES; k++) { peak[k] = LOWEST; }
//:end
//:if SWEEP_NUMBERS
    var sums = array<R, 2 * STAGES>();
//:end
//:if SWEEP_OUTPUT
    var output = array<R, DIM_V>();
//:if TANGENTS
    var output_t = array<R, DIM_V>();
//:end
//:end
//:if SWEEP_GRAD_QUERY
    var grad = array<R, DIM>();
//:if TANGENTS
    var grad_t = array<R, DIM>();
//:end
//:end
$BEFORE_SWEEPS$
$SWEEPS$
//:if SWEEP_OUTPUT
//:each DIM_V
//:if TO_OUT
        arena[TO_OUT + number * DIM_V + d] = output[d];
//:end
//:if TO_OUT_T
        arena[TO_OUT_T + number * DIM_V + d] = output_t[d];
//:end
//:end
//:end
//:if TO_LSE
    arena[TO_LSE + number] = select(-inf(), row.stage[$LOGSUMEXP$], row.alive);
//:end
//:if TO_LSE_T
    arena[TO_LSE_T + number] = select(R(0.0), row.stage_t[$LOGSUMEXP$], row.alive);
//:end
//:if NUMBERS
    let at = NUMBERS + number * (1u + 4u * STAGES);
    arena[at] = select(R(0.0), R(1.0), row.alive);
    for (var k = 0u; k < STAGES; k++) {
        arena[at + 1u + 4u * k] = row.stage[k];
        arena[at + 2u + 4u * k] = row.stage_t[k];
        arena[at + 3u + 4u * k] = row.grad_stage[k];
        arena[at + 4u + 4u * k] = row.grad_stage_t[k];
    }
//:end
//:if SWEEP_GRAD_QUERY
//:each DIM
//:if TO_DQ
        arena[TO_DQ + number * DIM + d] = by_scale(grad[d]);
//:end
//:if TO_DQ_T
        arena[TO_DQ_T + number * DIM + d] = by_scale(grad_t[d]);
//:end
//:end
//:end
}
