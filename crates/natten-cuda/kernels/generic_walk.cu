// Walks over pairs: the keys that a query sees, the queries that see a key, and what a pair is made of. Behind the
// prelude and the rendered program, which give
//
//   Tensors                the operation's tensors, each a View; one that is not there has no data
//   Window, Additional     the program's functions on pairs of a window, and on those of additional tokens
//   OfRow                  its functions of a row
//
// A group of lanes takes 32 pairs at a time, one each; what is summed over pairs in vectors is summed by all lanes
// together, an element each. A pair that does not count is never part of a sum, whatever its numbers are.

// Elements of a vector that a lane keeps.
#define OF_LANE(n) (((n) + LANES - 1) / LANES)

// The tensor of the window's keys, or of the additional ones.
template <bool ADDITIONAL, class W, class A> DEVICE const auto& either(const W& window, const A& additional) {
    if constexpr (ADDITIONAL) return additional;
    else return window;
}

// A vector of a key.
template <bool ADDITIONAL, class W, class A>
DEVICE auto* key_of(const View<W>& window, const View<A>& additional, const Sizes& z, const Site& at) {
    if constexpr (ADDITIONAL) return additional_at(additional, at.b, at.k - (int)z.keys, at.hkv);
    else return vector_at(window, at.b, at.kc, at.hkv);
}

// The entry of the query head's bias table, and where it lies.
DEVICE void bias_entry(const Sizes& z, const Site& at, int entry[3]) {
#pragma unroll
    for (int a = 0; a < 3; ++a) {
        const Axis& axis = z.axes[a];
        entry[a] = most(axis.kernel - 1 + at.kc[a] / axis.dilation - at.qc[a] / axis.dilation, 0);
    }
}

template <class T> DEVICE R bias_of(const View<T>& rpb, const Site& at, const int entry[3]) {
    return number(rpb.data[at.h * rpb.stride[0] + entry[0] * rpb.stride[1] + entry[1] * rpb.stride[2] + entry[2] * rpb.stride[3]]);
}

// The scaled score of a pair with its bias, and the tangent.
template <bool ADDITIONAL> DEVICE void score_of(const Tensors& t, const Sizes& z, const Site& at, Pair& x) {
    const auto* q = vector_at(t.query, at.b, at.qc, at.h);
    const auto* k = key_of<ADDITIONAL>(t.key, t.additional_key, z, at);
    const long long stride_q = t.query.stride[5], stride_k = ADDITIONAL ? t.additional_key.stride[3] : t.key.stride[5];
    const R scale = (R)z.scale;
    x.score = scale * dot(q, stride_q, k, stride_k, z.dim);
    x.score_t = 0;
    int entry[3];
    if (!ADDITIONAL && t.rpb.data) {
        bias_entry(z, at, entry);
        x.score += bias_of(t.rpb, at, entry);
    }
#if TANGENTS
    if (t.tangent_query.data)
        x.score_t += scale * dot(vector_at(t.tangent_query, at.b, at.qc, at.h), t.tangent_query.stride[5], k, stride_k, z.dim);
    const auto& tangents = either<ADDITIONAL>(t.tangent_key, t.tangent_additional_key);
    if (tangents.data) {
        const auto* tangent = key_of<ADDITIONAL>(t.tangent_key, t.tangent_additional_key, z, at);
        x.score_t += scale * dot(q, stride_q, tangent, tangents.stride[ADDITIONAL ? 3 : 5], z.dim);
    }
    if (!ADDITIONAL && t.tangent_rpb.data) {
        bias_entry(z, at, entry);
        x.score_t += bias_of(t.tangent_rpb, at, entry);
    }
#endif
}

// The inner product of the cotangent of the output with the value, and the tangent.
template <bool ADDITIONAL> DEVICE void grad_of(const Tensors& t, const Sizes& z, const Site& at, Pair& x) {
    const auto* v = key_of<ADDITIONAL>(t.value, t.additional_value, z, at);
    const long long stride_v = ADDITIONAL ? t.additional_value.stride[3] : t.value.stride[5];
    const auto* grad = vector_at(t.grad_output, at.b, at.qc, at.h);
    const long long stride = t.grad_output.stride[5];
    x.grad = dot(grad, stride, v, stride_v, z.dim_v);
    x.grad_t = 0;
#if TANGENTS
    if (t.tangent_grad_output.data) {
        const auto* tangent = vector_at(t.tangent_grad_output, at.b, at.qc, at.h);
        x.grad_t += dot(tangent, t.tangent_grad_output.stride[5], v, stride_v, z.dim_v);
    }
    const auto& tangents = either<ADDITIONAL>(t.tangent_value, t.tangent_additional_value);
    if (tangents.data) {
        const auto* tangent = key_of<ADDITIONAL>(t.tangent_value, t.tangent_additional_value, z, at);
        x.grad_t += dot(grad, stride, tangent, tangents.stride[ADDITIONAL ? 3 : 5], z.dim_v);
    }
#endif
}

// Everything of a pair; nothing is read for one that does not count.
template <class F, bool GRAD> DEVICE Pair pair_of(const Tensors& t, const Sizes& z, const Site& at, bool live) {
    Pair x = {0, 0, 0, 0};
    if (live && !UNFUSED) {
        score_of<F::ADDITIONAL>(t, z, at, x);
        if constexpr (GRAD) grad_of<F::ADDITIONAL>(t, z, at, x);
    }
    return x;
}

// The query of a site.
DEVICE Site site_of_query(const Sizes& z, int b, int h, long long q) {
    Site at = {};
    at.b = b;
    at.h = h;
    at.hkv = h / z.per_kv;
    at.row = (unsigned)((long long)b * z.heads + h);
    at.q = (int)q;
    coordinates<true>(z, q, at.qc);
    return at;
}

// Puts the key of an additional token into a site.
DEVICE void set_additional(const Sizes& z, Site& at, int n) {
    const long long token = z.keys + n;
    at.k = (int)token;
    coordinates<false>(z, token, at.kc);
    at.slot = z.slots - z.additional + n;
}

// Puts a key, given by its positions in the query's groups, into a site.
DEVICE void set_key(const Sizes& z, Site& at, const Span span[3], const int position[3]) {
    long long token = 0, slot = 0;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
        const Axis& axis = z.axes[a];
        at.kc[a] = at.qc[a] % axis.dilation + position[a] * axis.dilation;
        token = token * axis.keys + at.kc[a];
        slot = slot * axis.kernel + (position[a] - span[a].start);
    }
    at.k = (int)token;
    at.slot = slot;
}

DEVICE void window_of(const Sizes& z, const Site& at, Span span[3]) {
#pragma unroll
    for (int a = 0; a < 3; ++a) {
        const Axis& axis = z.axes[a];
        span[a] = window(axis, at.qc[a] % axis.dilation, at.qc[a] / axis.dilation);
    }
}

// Shows `body` everything that a query sees, a pair a lane: the function set, the site, and whether the pair counts.
template <class Body> DEVICE void sweep_window(const Tensors& t, const Sizes& z, const Row& row, const Site& query, Body body) {
    const auto fixed = Window::fix_mask(t, query, row);
    Span span[3];
    window_of(z, query, span);
    const int extent[3] = {span[0].end - span[0].start, span[1].end - span[1].start, span[2].end - span[2].start};
    const long long count = (long long)extent[0] * extent[1] * extent[2];
    for (long long first = 0; first < count; first += LANES) {
        const long long number = first + lane_of_group();
        const bool inside = number < count;
        long long rest = inside ? number : 0;
        int position[3];
#pragma unroll
        for (int a = 2; a >= 0; --a) {
            if (a > 3 - RANK) {
                position[a] = span[a].start + (int)(rest % extent[a]);
                rest /= extent[a];
            } else {
                position[a] = span[a].start + (a == 3 - RANK ? (int)rest : 0);
            }
        }
        Site at = query;
        set_key(z, at, span, position);
        body(at, inside && Window::mask(t, at, row, fixed));
    }
}

template <class Body> DEVICE void sweep_additional(const Sizes& z, const Site& query, Body body) {
    for (int first = 0; first < z.additional; first += LANES) {
        const int n = first + lane_of_group();
        Site at = query;
        set_additional(z, at, least(n, z.additional - 1));
        body(at, n < z.additional);
    }
}

// Adds up vectors of other pairs' lanes: `sums[i] += factor * vector[d]` for every live lane's factor and vector, in the
// order of the lanes.
template <int N, class T>
DEVICE void add_vectors(R (&sums)[N], unsigned live, R factor, const T* vector, long long stride, int dim) {
    for (; live; live &= live - 1) {
        const int from = first_bit(live);
        const R f = from_lane(factor, from);
        const T* v = (const T*)from_lane((long long)vector, from);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int d = lane_of_group() + i * LANES;
            if (d < dim) sums[i] += f * number(v[d * stride]);
        }
    }
}

// ------------------------------------------------------------------------------------- a row's numbers between kernels

// Numbers of a row in the workspace: whether it is alive, and four of each stage.
#define ROW_NUMBERS (1 + 4 * STAGES)

DEVICE long long row_number(const Sizes& z, const Site& at) {
    return ((long long)at.b * z.heads + at.h) * z.queries + at.q;
}

DEVICE Row load_row(const R* numbers, long long number) {
    Row row = {};
    row.alive = true;
    if (!numbers) return row;
    numbers += number * ROW_NUMBERS;
    row.alive = numbers[0] != 0;
#pragma unroll
    for (int k = 0; k < STAGES; ++k) {
        row.stage[k] = numbers[1 + 4 * k];
        row.stage_t[k] = numbers[2 + 4 * k];
        row.grad_stage[k] = numbers[3 + 4 * k];
        row.grad_stage_t[k] = numbers[4 + 4 * k];
    }
    return row;
}

DEVICE void store_row(R* numbers, long long number, const Row& row) {
    if (!numbers || lane_of_group() != 0) return;
    numbers += number * ROW_NUMBERS;
    numbers[0] = row.alive ? 1 : 0;
#pragma unroll
    for (int k = 0; k < STAGES; ++k) {
        numbers[1 + 4 * k] = row.stage[k];
        numbers[2 + 4 * k] = row.stage_t[k];
        numbers[3 + 4 * k] = row.grad_stage[k];
        numbers[4 + 4 * k] = row.grad_stage_t[k];
    }
}

// ------------------------------------------------------------------------------------------------------------ stages

// A stage on its way: a sum or an extreme, or a running maximum and the sum of exponentials under it.
struct Running { R value, peak; };

DEVICE R finite_peak(R peak) { return peak == -R_INF ? (R)0 : peak; }

DEVICE Running begin_stage(int kind) { return {kind == MIN_STAGE ? R_INF : kind == MAX_STAGE ? -R_INF : (R)0, -R_INF}; }

DEVICE void join_stage(int kind, Running& a, Running b) {
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
    if (kind != LSE_STAGE) return join_stage(kind, a, {x, -R_INF});
    // A NaN is no peak, and makes the sum NaN.
    if (x > a.peak) {
        a.value *= f_exp(a.peak - x);
        a.peak = x;
    }
    a.value += f_exp(x - finite_peak(a.peak));
}

// The stage of neighbouring lanes, so many of them.
template <int COUNT> DEVICE R finish_stage(int kind, Running a) {
#pragma unroll
    for (int distance = COUNT / 2; distance > 0; distance /= 2)
        join_stage(kind, a, {from_partner(a.value, distance), from_partner(a.peak, distance)});
    if (kind != LSE_STAGE) return a.value;
    return a.value == 0 ? -R_INF : finite_peak(a.peak) + f_log(a.value);
}

// The number of a query: [B, X0, X1, X2, H].
template <class T> DEVICE T* number_at(const View<T>& v, const Site& at) {
    return v.data + at.b * v.stride[0] + at.qc[0] * v.stride[1] + at.qc[1] * v.stride[2] + at.qc[2] * v.stride[3] + at.h * v.stride[4];
}
