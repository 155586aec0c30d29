// The walk with stationary keys: a group of lanes takes a key of a key head, and sweeps over the queries that see it, of
// every query head of the key head, for the gradients of the key and of its value. Additional tokens are seen by all
// queries. KEY_GRADS and VALUE_GRADS are 1 where those gradients are wanted.

// The group's elements of a result, if it is wanted.
template <int N, class T> DEVICE void write_elements(T* vector, long long stride, const R (&numbers)[N], R factor, int dim) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const int d = lane_of_group() + i * LANES;
        if (d < dim) put(vector + d * stride, factor * numbers[i]);
    }
}

template <bool ADDITIONAL, int N, class W, class A>
DEVICE void write_of_key(const View<W>& window, const View<A>& additional, const Sizes& z, const Site& key, const R (&numbers)[N], R factor, int dim) {
    const auto& to = either<ADDITIONAL>(window, additional);
    if (!to.data) return;
    write_elements(key_of<ADDITIONAL>(window, additional, z, key), to.stride[ADDITIONAL ? 3 : 5], numbers, factor, dim);
}

// Adds vectors of the lanes' queries to a key's sum, each times its number, and the tangents of these products to the sum's
// tangent.
template <int N, class X, class T>
DEVICE void add_of_queries(R (&sum)[N], R (&sum_t)[N], bool is_wanted, unsigned lanes, const R (&by)[2], const Site& at, const View<X>& x, const View<T>& x_t, int dim) {
    const X* vector = vector_at(x, at.b, at.qc, at.h);
    if (is_wanted) add_vectors(sum, lanes, by[0], vector, x.stride[5], dim);
#if TANGENTS
    add_vectors(sum_t, lanes, by[1], vector, x.stride[5], dim);
    if (x_t.data) add_vectors(sum_t, lanes, by[0], vector_at(x_t, at.b, at.qc, at.h), x_t.stride[5], dim);
#endif
}

template <class F> DEVICE void sweep_queries(const Tensors& t, const Sizes& z, const Site& key) {
    constexpr bool A = F::ADDITIONAL;
    Span span[3];
    int extent[3], step[3], group[3];
#pragma unroll
    for (int a = 0; a < 3; ++a) {
        const Axis& axis = z.axes[a];
        step[a] = A ? 1 : axis.dilation;
        group[a] = A ? 0 : key.kc[a] % axis.dilation;
        span[a] = A ? Span{0, axis.queries} : queries_of(axis, group[a], key.kc[a] / axis.dilation);
        extent[a] = span[a].end - span[a].start;
    }
    const long long of_head = (long long)extent[0] * extent[1] * extent[2];
    const long long count = of_head * z.per_kv;
    R grad_key[OF_LANE(DIM)] = {}, grad_key_t[OF_LANE(DIM)] = {};
    R grad_value[OF_LANE(DIM_V)] = {}, grad_value_t[OF_LANE(DIM_V)] = {};
    for (long long first = 0; first < count; first += LANES) {
        const long long number = first + lane_of_group();
        const bool inside = number < count;
        long long rest = inside ? number % of_head : 0;
        int qc[3];
#pragma unroll
        for (int a = 2; a >= 0; --a) {
            qc[a] = group[a] + step[a] * (span[a].start + (int)(rest % extent[a]));
            rest /= extent[a];
        }
        const long long query = ((long long)qc[0] * z.axes[1].queries + qc[1]) * z.axes[2].queries + qc[2];
        const int head = key.hkv * z.per_kv + (inside ? (int)(number / of_head) : 0);
        Site at = site_of_query(z, key.b, head, query);
        at.k = key.k;
#pragma unroll
        for (int a = 0; a < 3; ++a) at.kc[a] = key.kc[a];
        if (A) set_additional(z, at, key.k - (int)z.keys);
#if UNFUSED
        if (!A) {
            Span keys[3];
            int position[3];
            window_of(z, at, keys);
#pragma unroll
            for (int a = 0; a < 3; ++a) position[a] = key.kc[a] / z.axes[a].dilation;
            set_key(z, at, keys, position);
        }
#endif
        const Row row = load_row(t.numbers, row_number(z, at));
        bool live = inside && row.alive;
        if (live) live = F::mask(t, at, row, F::fix_mask(t, at, row));
        const unsigned bits = ballot(live);
        if (!bits) continue;
        const Pair x = pair_of<F, KEY_GRADS>(t, z, at, live);
#if KEY_GRADS
        R ds[2] = {0, 0};
        if (live) F::grad_score(t, at, row, x, F::fix_grad_score(t, at, row), ds);
        add_of_queries(grad_key, grad_key_t, either<A>(t.to_grad_key, t.to_grad_additional_key).data, bits, ds, at, t.query, t.tangent_query, z.dim);
#endif
#if VALUE_GRADS
        R w[2] = {0, 0};
        if (live) F::weight(t, at, row, x, F::fix_weight(t, at, row), w);
        add_of_queries(grad_value, grad_value_t, either<A>(t.to_grad_value, t.to_grad_additional_value).data, bits, w, at, t.grad_output, t.tangent_grad_output, z.dim_v);
#endif
    }
    const R scale = (R)z.scale;
    write_of_key<A>(t.to_grad_key, t.to_grad_additional_key, z, key, grad_key, scale, z.dim);
    write_of_key<A>(t.to_grad_value, t.to_grad_additional_value, z, key, grad_value, (R)1, z.dim_v);
#if TANGENTS
    write_of_key<A>(t.to_grad_key_t, t.to_grad_additional_key_t, z, key, grad_key_t, scale, z.dim);
    write_of_key<A>(t.to_grad_value_t, t.to_grad_additional_value_t, z, key, grad_value_t, (R)1, z.dim_v);
#endif
}

// A key of all, of one batch entry and key head after the other.
DEVICE Site site_of_key(const Sizes& z, long long number, long long keys) {
    Site at = {};
    const long long of_head = number / keys;
    at.b = (int)(of_head / z.heads_kv);
    at.hkv = (int)(of_head % z.heads_kv);
    at.k = (int)(number % keys);
    return at;
}

extern "C" __global__ void __launch_bounds__(128) keys(PARAMETERS) {
    const Tensors t = TENSORS;
    const long long units = (long long)z.batch * z.heads_kv * z.keys;
    for (long long number = this_group(); number < units; number += all_groups()) {
        Site key = site_of_key(z, number, z.keys);
        coordinates<false>(z, key.k, key.kc);
        sweep_queries<Window>(t, z, key);
    }
}

#if ADDITIONAL_TOKENS
extern "C" __global__ void __launch_bounds__(128) additional_keys(PARAMETERS) {
    const Tensors t = TENSORS;
    const long long units = (long long)z.batch * z.heads_kv * z.additional;
    for (long long number = this_group(); number < units; number += all_groups()) {
        Site key = site_of_key(z, number, z.additional);
        set_additional(z, key, key.k);
        sweep_queries<Additional>(t, z, key);
    }
}
#endif
