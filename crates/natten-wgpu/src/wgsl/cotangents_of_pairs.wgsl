    for (var k = 0u; k < STAGES; k++) {
        row.grad_stage[k] = sums[2u * k];
        row.grad_stage_t[k] = sums[2u * k + 1u];
    }
//:if LOGSUMEXP
    row.grad_stage[$LOGSUMEXP$] += row.grad_logsumexp;
    row.grad_stage_t[$LOGSUMEXP$] += row.grad_logsumexp_t;
//:end
