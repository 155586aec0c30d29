// The walk with stationary queries: a group of lanes takes a query of a head, and sweeps over its keys as often as the
// operation needs. Stages first, then their tangents, the output, the cotangents of the stages, the gradient of the
// query. Which of these there are, defines say:
//
//   SWEEP_STAGES, SWEEP_STAGE_TANGENTS, SWEEP_OUTPUT, GRAD_STAGES (0 none, 1 of the row, 2 of its pairs), SWEEP_GRAD_QUERY
//
// A row without a pair that counts, or with a logsumexp of -inf, is dead: its output and every derivative are 0.

// A stage on its way: a sum or an extreme, or a running maximum and the sum of exponentials under it.
struct Running { R value, peak; };

DEVICE R finite_peak(R peak) { return peak == -R_INF ? (R)0 : peak; }

DEVICE Running begin_stage(int kind) { return {kind == MIN_STAGE ? R_INF : kind == MAX_STAGE ? -R_INF : (R)0, -R_INF}; }

DEVICE void join_stage(int kind, Running& a, const Running& b) {
    if (kind == SUM_STAGE) a.value += b.value;
    else if (kind == MAX_STAGE) a.value = f_max(a.value, b.value);
    else if (kind == MIN_STAGE) a.value = f_min(a.value, b.value);
    else {
        const R peak = b.peak > a.peak ? b.peak : a.peak;
        const R shift = finite_peak(peak);
        a.value = a.value * f_exp(a.peak - shift) + b.value * f_exp(b.peak - shift);
        a.peak = peak;
    }
}

DEVICE void add_element(int kind, Running& a, R x) {
    // A NaN is no peak, and makes the sum NaN.
    if (kind == LSE_STAGE) {
        if (x > a.peak) {
            a.value *= f_exp(a.peak - x);
            a.peak = x;
        }
        a.value += f_exp(x - finite_peak(a.peak));
    } else {
        join_stage(kind, a, {x, -R_INF});
    }
}

DEVICE R finish_stage(int kind, Running a) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        join_stage(kind, a, {from_partner(a.value, distance), from_partner(a.peak, distance)});
    if (kind != LSE_STAGE) return a.value;
    return a.value == 0 ? -R_INF : finite_peak(a.peak) + f_log(a.value);
}

template <class F> struct Stages {
    const Tensors& t;
    const Sizes& z;
    const Row& row;
    Running* running;
    bool& seen;
    decltype(F::fix_stages(t, Site(), row)) fixed;
    DEVICE void operator()(const Site& at, bool live) {
        const Pair x = pair_of<F, false>(t, z, at, live);
        if (!live) return;
        seen = true;
        R elements[STAGES] = {};
        F::stages(t, at, row, x, fixed, elements);
#pragma unroll
        for (int k = 0; k < STAGES; ++k)
            if (is_swept(k)) add_element(stage_kind(k), running[k], elements[k]);
    }
};

extern "C" __global__ void __launch_bounds__(128) queries(PARAMETERS) {
    const Tensors t = TENSORS;
    const long long rows = (long long)z.batch * z.heads * z.queries;
    for (long long number = this_group(); number < rows; number += all_groups()) {
        const int h = (int)(number / z.queries % z.heads);
        const Site query = site_of_query(z, (int)(number / z.queries / z.heads), h, number % z.queries);
        Row row = {};
        row.alive = true;
        if (t.logsumexp.data && LOGSUMEXP >= 0) row.stage[LOGSUMEXP < 0 ? 0 : LOGSUMEXP] = number_of(t.logsumexp, query);
        if (t.grad_logsumexp.data) row.grad_logsumexp = number_of(t.grad_logsumexp, query);
        if (t.tangent_grad_logsumexp.data) row.grad_logsumexp_t = number_of(t.tangent_grad_logsumexp, query);

#if SWEEP_STAGES
        {
            Running running[STAGES];
            bool seen = false;
#pragma unroll
            for (int k = 0; k < STAGES; ++k) running[k] = begin_stage(stage_kind(k));
            const auto sweep = [&](auto of, const Site& at, bool live, const auto& fixed) {
                using F = decltype(of);
                const Pair x = pair_of<F, false>(t, z, at, live);
                if (!live) return;
                seen = true;
                R elements[STAGES] = {};
                F::stages(t, at, row, x, fixed, elements);
#pragma unroll
                for (int k = 0; k < STAGES; ++k)
                    if (is_swept(k)) add_element(stage_kind(k), running[k], elements[k]);
            };
            EACH_PAIR(stages, sweep)
            row.alive = ballot(seen) != 0;
#pragma unroll
            for (int k = 0; k < STAGES; ++k)
                if (is_swept(k)) row.stage[k] = finish_stage(stage_kind(k), running[k]);
        }
#endif
    }
}
