// What the unfused pair has in memory for every slot of a query: a thread a slot. KIND 0: the score and -inf where there
// is no key, or its tangent and 0; KIND 1: the gradient of the weight, and 0 where there is no key.

extern "C" __global__ void __launch_bounds__(128) slots(PARAMETERS) {
    const Tensors t = TENSORS;
    const long long count = (long long)z.batch * z.heads * z.queries * z.slots;
    for (long long number = (long long)blockIdx.x * blockDim.x + threadIdx.x; number < count; number += (long long)gridDim.x * blockDim.x) {
        const long long slot = number % z.slots, query = number / z.slots % z.queries, of_head = number / z.slots / z.queries;
        Site at = site_of_query(z, (int)(of_head / z.heads), (int)(of_head % z.heads), query);
        Pair x = {};
        bool has_key = true;
        if (slot >= z.slots - z.additional) {
#if ADDITIONAL_TOKENS
            set_additional(z, at, (int)(slot - (z.slots - z.additional)));
            if (KIND == 0) score_of<true>(t, z, at, x);
            else grad_of<true>(t, z, at, x);
#endif
        } else {
            Span span[3];
            int position[3];
            window_of(z, at, span);
            long long rest = slot;
#pragma unroll
            for (int a = 2; a >= 0; --a) {
                position[a] = span[a].start + (int)(rest % z.axes[a].kernel);
                rest /= z.axes[a].kernel;
                has_key = has_key && position[a] < span[a].end;
            }
            if (has_key) {
                set_key(z, at, span, position);
                if (KIND == 0) score_of<false>(t, z, at, x);
                else grad_of<false>(t, z, at, x);
            }
        }
        const R empty = KIND == 0 && !TANGENTS ? -R_INF : (R)0;
        const R full = KIND == 1 ? x.grad : TANGENTS ? x.score_t : x.score;
        put(slot_at(t.to_attention, at.b, at.h, at.qc, slot), has_key ? full : empty);
    }
}
