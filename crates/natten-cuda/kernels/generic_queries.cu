// The walk with stationary queries: a group of lanes takes a query of a head, and sweeps over its keys as often as the
// operation needs: for the stages, for their tangents, for the output, for the cotangents of the stages, for the gradient
// of the query. Which of these there are, defines say:
//
//   SWEEP_STAGES, SWEEP_STAGE_TANGENTS, SWEEP_OUTPUT, SWEEP_GRAD_QUERY     1 or 0
//   GRAD_STAGES    how the cotangents of the stages are found: 0 not at all, 1 from the row's numbers, 2 from its pairs
//   USES_DELTA     1 where they depend on the inner product of the output with its cotangent
//   LOGSUMEXP      the stage that is the logsumexp, or -1
//   ONE_SWEEP      1 where stages and output are found in one sweep, the output scaled at the end
//   EXPONENTIAL    the stage whose running maximum is then taken off exponents, or -1
//
// A row without a pair that counts, or with a logsumexp of -inf, is dead: its output and every derivative are 0.

// Writes the elements that the lanes keep.
template <int N, class T> DEVICE void write_vector(const View<T>& to, const Site& at, const R (&numbers)[N], R factor, int dim) {
    if (!to.data) return;
    T* vector = vector_at(to, at.b, at.qc, at.h);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const int d = lane_of_group() + i * LANES;
        if (d < dim) put(vector + d * to.stride[5], factor * numbers[i]);
    }
}

// Shows `body` every pair of the row, with what a function has fixed for the row.
#define EACH_WINDOW_PAIR(NAME, BODY)                                                                                   \
    {                                                                                                                  \
        const auto fixed = Window::fix_##NAME(t, query, row);                                                          \
        sweep_window(t, z, row, query, [&](const Site& at, bool live) { BODY(Window(), at, live, fixed); });           \
    }
#if ADDITIONAL_TOKENS
#define EACH_PAIR(NAME, BODY)                                                                                          \
    EACH_WINDOW_PAIR(NAME, BODY)                                                                                       \
    {                                                                                                                  \
        const auto fixed = Additional::fix_##NAME(t, query, row);                                                      \
        sweep_additional(z, query, [&](const Site& at, bool live) { BODY(Additional(), at, live, fixed); });           \
    }
#else
#define EACH_PAIR(NAME, BODY) EACH_WINDOW_PAIR(NAME, BODY)
#endif

#if SWEEP_STAGES
DEVICE void sweep_stages(const Tensors& t, const Sizes& z, const Site& query, Row& row) {
    Running running[STAGES];
    bool seen = false;
#pragma unroll
    for (int k = 0; k < STAGES; ++k) running[k] = begin_stage(stage_kind(k));
    const auto body = [&](auto of, const Site& at, bool live, const auto& fixed) {
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
    EACH_PAIR(stages, body)
    row.alive = row.alive && ballot(seen) != 0;
#pragma unroll
    for (int k = 0; k < STAGES; ++k)
        if (is_swept(k)) row.stage[k] = finish_stage<LANES>(stage_kind(k), running[k]);
}
#endif

#if ONE_SWEEP
// The largest number of the lanes'; a NaN is none.
DEVICE R group_most(R x) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        const R other = from_partner(x, distance);
        x = other > x ? other : x;
    }
    return x;
}

// Stages and output together. The exponents' running maximum is that of all lanes, so that the output has one scale.
DEVICE void sweep_stages_and_output(const Tensors& t, const Sizes& z, const Site& query, Row& row, R (&output)[OF_LANE(DIM_V)]) {
    Running running[STAGES];
    bool seen = false;
    R peak = -R_INF;
#pragma unroll
    for (int k = 0; k < STAGES; ++k) running[k] = begin_stage(stage_kind(k));
    row.shift = 0;
    const auto body = [&](auto of, const Site& at, bool live, const auto& fixed) {
        using F = decltype(of);
        constexpr bool A = F::ADDITIONAL;
        const unsigned bits = ballot(live);
        if (!bits) return;
        const Pair x = pair_of<F, false>(t, z, at, live);
        R elements[STAGES] = {};
        if (live) F::stages(t, at, row, x, F::fix_stages(t, query, row), elements);
#if EXPONENTIAL >= 0
        const R largest = group_most(live ? elements[EXPONENTIAL] : -R_INF);
        if (largest > peak) {
            const R factor = f_exp(peak - largest);
            running[EXPONENTIAL].value *= factor;
#pragma unroll
            for (int i = 0; i < OF_LANE(DIM_V); ++i) output[i] *= factor;
            running[EXPONENTIAL].peak = peak = row.shift = largest;
        }
#endif
        R w[2] = {0, 0};
        if (live) {
            seen = true;
            F::local(t, at, row, x, fixed, w);
#pragma unroll
            for (int k = 0; k < STAGES; ++k)
                if (is_swept(k)) add_element(stage_kind(k), running[k], elements[k]);
        }
        const auto* v = key_of<A>(t.value, t.additional_value, z, at);
        add_vectors(output, bits, w[0], v, A ? t.additional_value.stride[3] : t.value.stride[5], z.dim_v);
    };
    EACH_PAIR(local, body)
    row.alive = ballot(seen) != 0;
#pragma unroll
    for (int k = 0; k < STAGES; ++k)
        if (is_swept(k)) row.stage[k] = finish_stage<LANES>(stage_kind(k), running[k]);
    R factor[1];
    OfRow::factor(t, query, row, factor);
#pragma unroll
    for (int i = 0; i < OF_LANE(DIM_V); ++i) output[i] *= factor[0];
}
#endif

#if SWEEP_STAGE_TANGENTS
DEVICE void sweep_stage_tangents(const Tensors& t, const Sizes& z, const Site& query, Row& row) {
    R sums[STAGES] = {};
    const auto body = [&](auto of, const Site& at, bool live, const auto& fixed) {
        using F = decltype(of);
        const Pair x = pair_of<F, false>(t, z, at, live);
        if (!live) return;
        R tangents[STAGES] = {};
        F::stage_tangents(t, at, row, x, fixed, tangents);
#pragma unroll
        for (int k = 0; k < STAGES; ++k) sums[k] += tangents[k];
    };
    EACH_PAIR(stage_tangents, body)
#pragma unroll
    for (int k = 0; k < STAGES; ++k) row.stage_t[k] = group_sum(sums[k]);
}
#endif

#if GRAD_STAGES == 2
DEVICE void sweep_grad_stages(const Tensors& t, const Sizes& z, const Site& query, Row& row) {
    R sums[2 * STAGES] = {};
    const auto body = [&](auto of, const Site& at, bool live, const auto& fixed) {
        using F = decltype(of);
        const Pair x = pair_of<F, true>(t, z, at, live);
        if (!live) return;
        R cotangents[2 * STAGES] = {};
        F::grad_stages(t, at, row, x, fixed, cotangents);
#pragma unroll
        for (int k = 0; k < 2 * STAGES; ++k) sums[k] += cotangents[k];
    };
    EACH_PAIR(grad_stages, body)
#pragma unroll
    for (int k = 0; k < STAGES; ++k) {
        row.grad_stage[k] = group_sum(sums[2 * k]);
        row.grad_stage_t[k] = group_sum(sums[2 * k + 1]);
        if (k == LOGSUMEXP) {
            row.grad_stage[k] += row.grad_logsumexp;
            row.grad_stage_t[k] += row.grad_logsumexp_t;
        }
    }
}
#endif

#if SWEEP_OUTPUT
DEVICE void sweep_output(const Tensors& t, const Sizes& z, const Site& query, const Row& row, R (&output)[OF_LANE(DIM_V)],
                         R (&output_t)[OF_LANE(DIM_V)]) {
    const auto body = [&](auto of, const Site& at, bool live, const auto& fixed) {
        using F = decltype(of);
        constexpr bool A = F::ADDITIONAL;
        const Pair x = pair_of<F, false>(t, z, at, live);
        R w[2] = {0, 0};
        if (live) F::weight(t, at, row, x, fixed, w);
        const unsigned bits = ballot(live);
        const auto* v = key_of<A>(t.value, t.additional_value, z, at);
        const long long stride = A ? t.additional_value.stride[3] : t.value.stride[5];
        add_vectors(output, bits, w[0], v, stride, z.dim_v);
#if TANGENTS
        add_vectors(output_t, bits, w[1], v, stride, z.dim_v);
        const auto& tangents = either<A>(t.tangent_value, t.tangent_additional_value);
        if (tangents.data) {
            const auto* tangent = key_of<A>(t.tangent_value, t.tangent_additional_value, z, at);
            add_vectors(output_t, bits, w[0], tangent, tangents.stride[A ? 3 : 5], z.dim_v);
        }
#endif
    };
    EACH_PAIR(weight, body)
}
#endif

#if GRAD_STAGES == 1
// The inner product of the output with its cotangent, and the tangent, summed as those of the values are. The output is
// the given one, or the one that this kernel has written.
DEVICE void find_delta(const Tensors& t, const Sizes& z, const Site& query, Row& row) {
    const auto* grad = vector_at(t.grad_output, query.b, query.qc, query.h);
    const long long stride = t.grad_output.stride[5];
#if TANGENTS
    const R* output = vector_at(t.to_output, query.b, query.qc, query.h);
    const R* output_t = vector_at(t.to_output_again, query.b, query.qc, query.h);
    row.delta = dot(grad, stride, output, 1, z.dim_v);
    row.delta_t = 0;
    if (t.tangent_grad_output.data) {
        const auto* tangent = vector_at(t.tangent_grad_output, query.b, query.qc, query.h);
        row.delta_t = dot(tangent, t.tangent_grad_output.stride[5], output, 1, z.dim_v);
    }
    row.delta_t += dot(grad, stride, output_t, 1, z.dim_v);
#else
    const auto* output = vector_at(t.output, query.b, query.qc, query.h);
    row.delta = dot(grad, stride, output, t.output.stride[5], z.dim_v);
#endif
}
#endif

#if SWEEP_GRAD_QUERY
DEVICE void sweep_grad_query(const Tensors& t, const Sizes& z, const Site& query, const Row& row) {
    R grad[OF_LANE(DIM)] = {}, grad_t[OF_LANE(DIM)] = {};
    const auto body = [&](auto of, const Site& at, bool live, const auto& fixed) {
        using F = decltype(of);
        constexpr bool A = F::ADDITIONAL;
        const Pair x = pair_of<F, true>(t, z, at, live);
        R ds[2] = {0, 0};
        if (live) F::grad_score(t, at, row, x, fixed, ds);
        const unsigned bits = ballot(live);
        const auto* k = key_of<A>(t.key, t.additional_key, z, at);
        const long long stride = A ? t.additional_key.stride[3] : t.key.stride[5];
        if (t.to_grad_query.data) add_vectors(grad, bits, ds[0], k, stride, z.dim);
#if TANGENTS
        add_vectors(grad_t, bits, ds[1], k, stride, z.dim);
        const auto& tangents = either<A>(t.tangent_key, t.tangent_additional_key);
        if (tangents.data) {
            const auto* tangent = key_of<A>(t.tangent_key, t.tangent_additional_key, z, at);
            add_vectors(grad_t, bits, ds[0], tangent, tangents.stride[A ? 3 : 5], z.dim);
        }
#endif
    };
    if (row.alive) {
        EACH_PAIR(grad_score, body)
    }
    write_vector(t.to_grad_query, query, grad, (R)z.scale, z.dim);
#if TANGENTS
    write_vector(t.to_grad_query_t, query, grad_t, (R)z.scale, z.dim);
#endif
}
#endif

extern "C" __global__ void __launch_bounds__(128) queries(PARAMETERS) {
    const Tensors t = TENSORS;
    const long long rows = (long long)z.batch * z.heads * z.queries;
    for (long long number = this_group(); number < rows; number += all_groups()) {
        const long long of_head = number / z.queries;
        const Site query = site_of_query(z, (int)(of_head / z.heads), (int)(of_head % z.heads), number % z.queries);
        Row row = {};
        row.alive = true;
        constexpr int L = LOGSUMEXP < 0 ? 0 : LOGSUMEXP;
        if (t.logsumexp.data) row.stage[L] = ::number(*number_at(t.logsumexp, query));
        if (t.grad_logsumexp.data) row.grad_logsumexp = ::number(*number_at(t.grad_logsumexp, query));
        if (t.tangent_grad_logsumexp.data) row.grad_logsumexp_t = ::number(*number_at(t.tangent_grad_logsumexp, query));
        R output[OF_LANE(DIM_V)] = {}, output_t[OF_LANE(DIM_V)] = {};
#if ONE_SWEEP
        sweep_stages_and_output(t, z, query, row, output);
#elif SWEEP_STAGES
        sweep_stages(t, z, query, row);
#endif
#pragma unroll
        for (int k = 0; k < STAGES; ++k)
            if (stage_kind(k) == LSE_STAGE && row.stage[k] == -R_INF) row.alive = false;
#if SWEEP_STAGE_TANGENTS
        if (row.alive) sweep_stage_tangents(t, z, query, row);
#endif
#if ONE_SWEEP
        // What a dead row has summed up may be anything.
        if (!row.alive) {
#pragma unroll
            for (int i = 0; i < OF_LANE(DIM_V); ++i) output[i] = 0;
        }
        write_vector(t.to_output, query, output, (R)1, z.dim_v);
#elif SWEEP_OUTPUT
        if (row.alive) sweep_output(t, z, query, row, output, output_t);
        write_vector(t.to_output, query, output, (R)1, z.dim_v);
        write_vector(t.to_output_t, query, output_t, (R)1, z.dim_v);
        write_vector(t.to_output_again, query, output_t, (R)1, z.dim_v);
#endif
        if (lane_of_group() == 0) {
            if (t.to_logsumexp.data) put(number_at(t.to_logsumexp, query), row.alive ? row.stage[L] : -R_INF);
            if (t.to_logsumexp_t.data) put(number_at(t.to_logsumexp_t, query), row.alive ? row.stage_t[L] : (R)0);
        }
#if GRAD_STAGES == 1
        if (row.alive) {
            if (USES_DELTA) {
                wait_for_group();
                find_delta(t, z, query, row);
            }
            R cotangents[2 * STAGES] = {};
            OfRow::grad_stages(t, query, row, cotangents);
#pragma unroll
            for (int k = 0; k < STAGES; ++k) {
                row.grad_stage[k] = cotangents[2 * k];
                row.grad_stage_t[k] = cotangents[2 * k + 1];
            }
        }
#elif GRAD_STAGES == 2
        if (row.alive) sweep_grad_stages(t, z, query, row);
#endif
        store_row(t.numbers, number, row);
#if SWEEP_GRAD_QUERY
        sweep_grad_query(t, z, query, row);
#endif
    }
}
