// Linear attention in chunks of its recurrence, S a matrix of D rows and Dv columns a batch entry and query head:
//
//   S_t = f_t S_{t-1} + k_t v_t'      o_t = scale q_t S_t      f_t = exp(decay at t)
//
// and from the last token to the first, dS beginning as the cotangent of the final state:
//
//   dS += scale q_t do_t'    dq_t = scale S_t do_t    dk_t = dS v_t    dv_t = dS' k_t    dl_t = f_t <S_{t-1}, dS>    dS = f_t dS
//
// Tokens are cut into chunks of CHUNK, which run beside each other. What a chunk adds to a state of zero, and to a cotangent
// of zero, is found for all of them at once; a scan over the chunks then gives the states that they begin with and the
// cotangents of those that they end with; and from there every chunk finds its results. Columns of S, and rows of it, go
// their way alone: a thread takes one through a chunk. Decays are only ever multiplied, never divided by, so that one
// that leaves nothing is as exact as none. The states that dl_t needs again from the last token to the first are kept
// every SEGMENT tokens, and computed anew from there. Where there are tangents, all of it runs on numbers that carry
// theirs: the derivative of the text is the text.

#define CHUNK 64
#define SEGMENT 8

#if TANGENTS
struct N { R v, t; };
DEVICE N of(R v, R t) { return {v, t}; }
DEVICE N operator+(N a, N b) { return {a.v + b.v, a.t + b.t}; }
DEVICE N operator*(N a, N b) { return {a.v * b.v, a.v * b.t + a.t * b.v}; }
DEVICE N power(R v, R t) { return {f_exp(v), f_exp(v) * t}; }
#else
struct N { R v; };
DEVICE N of(R v, R) { return {v}; }
DEVICE N operator+(N a, N b) { return {a.v + b.v}; }
DEVICE N operator*(N a, N b) { return {a.v * b.v}; }
DEVICE N power(R v, R) { return {f_exp(v)}; }
#endif

// Loops over rows or columns are unrolled where the numbers then fit in registers, and the text stays short enough for
// the compiler.
#define UNROLLED(n) (!TANGENTS && sizeof(R) == 4 && (n) <= 64 ? (n) : 1)

// An element of a token's vector.
template <class A, class B> DEVICE N element(const View<A>& values, const View<B>& tangents, int b, int token, int h, int d) {
    const int at[3] = {0, 0, token};
    const R v = values.data ? number(vector_at(values, b, at, h)[d * values.stride[5]]) : (R)0;
    const R t = tangents.data ? number(vector_at(tangents, b, at, h)[d * tangents.stride[5]]) : (R)0;
    return of(v, t);
}

// [B, H, D, Dv]
template <class A> DEVICE long long state_at(const View<A>& v, int b, int h, int row, int column) {
    return b * v.stride[0] + h * v.stride[1] + row * v.stride[2] + column * v.stride[3];
}

template <class A, class B> DEVICE N state_of(const View<A>& values, const View<B>& tangents, int b, int h, int row, int column) {
    const R v = values.data ? number(values.data[state_at(values, b, h, row, column)]) : (R)0;
    const R t = tangents.data ? number(tangents.data[state_at(tangents, b, h, row, column)]) : (R)0;
    return of(v, t);
}

template <class A, class B> DEVICE void put_element(const View<A>& values, const View<B>& tangents, int b, int token, int h, int d, N x) {
    const int at[3] = {0, 0, token};
    if (values.data) put(vector_at(values, b, at, h) + d * values.stride[5], x.v);
#if TANGENTS
    if (tangents.data) put(vector_at(tangents, b, at, h) + d * tangents.stride[5], x.t);
#endif
}

template <class A, class B> DEVICE void put_state(const View<A>& values, const View<B>& tangents, int b, int h, int row, int column, N x) {
    if (values.data) put(values.data + state_at(values, b, h, row, column), x.v);
#if TANGENTS
    if (tangents.data) put(tangents.data + state_at(tangents, b, h, row, column), x.t);
#endif
}

DEVICE Site site_of_token(const Sizes& z, int b, int h, int token) {
    Site at = {};
    at.b = b;
    at.h = h;
    at.hkv = h / z.per_kv;
    at.row = (unsigned)((long long)b * z.heads + h);
    at.q = at.k = at.qc[2] = at.kc[2] = token;
    return at;
}

// f_t
DEVICE N factor(const Tensors& t, const Sizes& z, int b, int h, int token) {
    R l[2];
    Decay::value(t, site_of_token(z, b, h, token), l);
    return power(l[0], l[1]);
}

DEVICE long long this_thread() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE long long all_threads() { return (long long)gridDim.x * blockDim.x; }

// A chunk of a sequence: a batch entry, a query head, and tokens.
struct Chunk {
    int b, h, number, first, last;
};

DEVICE int chunks_of(const Sizes& z) { return (int)((z.keys + CHUNK - 1) / CHUNK); }

DEVICE Chunk chunk_of(const Sizes& z, int b, int h, int number) {
    return {b, h, number, number * CHUNK, (int)least((long long)(number + 1) * CHUNK, z.keys)};
}

// An element of the states of all chunks, or of their cotangents.
DEVICE N& chunk_state(void* states, const Sizes& z, int b, int h, int chunk, int row, int column) {
    return ((N*)states)[((((long long)b * z.heads + h) * chunks_of(z) + chunk) * z.dim + row) * z.dim_v + column];
}

// The decay over a whole chunk.
DEVICE N& chunk_factor(void* factors, const Sizes& z, int b, int h, int chunk) {
    return ((N*)factors)[((long long)b * z.heads + h) * chunks_of(z) + chunk];
}

#if PASS == 4 || PASS == 5
// What a decay over a chunk leaves of a state. Token by token, zero stays zero and infinity infinite, where the product of
// the factors has overflowed or underflowed.
DEVICE R left_of(R factor, R state) { return state == 0 ? 0 : factor * state; }

// The decay over a chunk as it is kept: one that has underflowed, without a factor of zero, is the least there is.
DEVICE N factor_of(N all, bool leaves_something) {
    if (leaves_something && all.v == 0) all.v = sizeof(R) == 4 ? (R)1.4e-45 : (R)4.9e-324;
    return all;
}

DEVICE N left_of(N factor, N state) {
#if TANGENTS
    return of(left_of(factor.v, state.v), left_of(factor.v, state.t) + left_of(factor.t, state.v));
#else
    return of(left_of(factor.v, state.v), 0);
#endif
}
#endif

#if PASS == 4
// What a chunk adds to a state of zero, and its decay: a thread takes a column.
extern "C" __global__ void __launch_bounds__(128) linear_state_parts(PARAMETERS, void* states, void* factors) {
    const Tensors t = TENSORS;
    const int chunks = chunks_of(z);
    for (long long unit = this_thread(); unit < (long long)z.batch * z.heads * chunks * z.dim_v; unit += all_threads()) {
        const int column = (int)(unit % z.dim_v), number = (int)(unit / z.dim_v % chunks);
        const long long row = unit / z.dim_v / chunks;
        const Chunk chunk = chunk_of(z, (int)(row / z.heads), (int)(row % z.heads), number);
        const int b = chunk.b, h = chunk.h, hkv = h / z.per_kv;
        N state[DIM], all = of(1, 0);
#pragma unroll UNROLLED(DIM)
        for (int i = 0; i < DIM; ++i) state[i] = of(0, 0);
        bool leaves_something = true;
        for (int token = chunk.first; token < chunk.last; ++token) {
            const N f = factor(t, z, b, h, token), v = element(t.value, t.tangent_value, b, token, hkv, column);
            all = f * all;
            leaves_something &= f.v > 0;
#pragma unroll UNROLLED(DIM)
            for (int i = 0; i < DIM; ++i)
                if (i < z.dim) state[i] = f * state[i] + element(t.key, t.tangent_key, b, token, hkv, i) * v;
        }
#pragma unroll UNROLLED(DIM)
        for (int i = 0; i < DIM; ++i)
            if (i < z.dim) chunk_state(states, z, b, h, number, i, column) = state[i];
        if (column == 0) chunk_factor(factors, z, b, h, number) = factor_of(all, leaves_something);
    }
}

// Turns what chunks add into the states that they begin with: a thread takes an element.
extern "C" __global__ void __launch_bounds__(128) linear_state_scan(PARAMETERS, void* states, void* factors) {
    const Tensors t = TENSORS;
    const int chunks = chunks_of(z);
    for (long long unit = this_thread(); unit < (long long)z.batch * z.heads * z.dim * z.dim_v; unit += all_threads()) {
        const int column = (int)(unit % z.dim_v), row = (int)(unit / z.dim_v % z.dim);
        const long long rest = unit / z.dim_v / z.dim;
        const int h = (int)(rest % z.heads), b = (int)(rest / z.heads);
        N state = state_of(t.initial_state, t.tangent_initial_state, b, h, row, column);
        for (int number = 0; number < chunks; ++number) {
            N& place = chunk_state(states, z, b, h, number, row, column);
            const N part = place;
            place = state;
            state = left_of(chunk_factor(factors, z, b, h, number), state) + part;
        }
        put_state(t.to_final_state, t.to_final_state_t, b, h, row, column, state);
    }
}
#endif

#if PASS == 5
// What a chunk adds to a cotangent of zero, and its decay: a thread takes a column.
extern "C" __global__ void __launch_bounds__(128) linear_grad_parts(PARAMETERS, void* grads, void* factors) {
    const Tensors t = TENSORS;
    const int chunks = chunks_of(z);
    const N scale = of((R)z.scale, 0);
    for (long long unit = this_thread(); unit < (long long)z.batch * z.heads * chunks * z.dim_v; unit += all_threads()) {
        const int column = (int)(unit % z.dim_v), number = (int)(unit / z.dim_v % chunks);
        const long long row = unit / z.dim_v / chunks;
        const Chunk chunk = chunk_of(z, (int)(row / z.heads), (int)(row % z.heads), number);
        const int b = chunk.b, h = chunk.h;
        N grad[DIM], all = of(1, 0);
#pragma unroll UNROLLED(DIM)
        for (int i = 0; i < DIM; ++i) grad[i] = of(0, 0);
        bool leaves_something = true;
        for (int token = chunk.last - 1; token >= chunk.first; --token) {
            const N f = factor(t, z, b, h, token);
            const N of_output = scale * element(t.grad_output, t.tangent_grad_output, b, token, h, column);
            all = f * all;
            leaves_something &= f.v > 0;
#pragma unroll UNROLLED(DIM)
            for (int i = 0; i < DIM; ++i)
                if (i < z.dim) grad[i] = f * (grad[i] + element(t.query, t.tangent_query, b, token, h, i) * of_output);
        }
#pragma unroll UNROLLED(DIM)
        for (int i = 0; i < DIM; ++i)
            if (i < z.dim) chunk_state(grads, z, b, h, number, i, column) = grad[i];
        if (column == 0) chunk_factor(factors, z, b, h, number) = factor_of(all, leaves_something);
    }
}

// Turns what chunks add into the cotangents of the states that they end with: a thread takes an element.
extern "C" __global__ void __launch_bounds__(128) linear_grad_scan(PARAMETERS, void* grads, void* factors) {
    const Tensors t = TENSORS;
    const int chunks = chunks_of(z);
    for (long long unit = this_thread(); unit < (long long)z.batch * z.heads * z.dim * z.dim_v; unit += all_threads()) {
        const int column = (int)(unit % z.dim_v), row = (int)(unit / z.dim_v % z.dim);
        const long long rest = unit / z.dim_v / z.dim;
        const int h = (int)(rest % z.heads), b = (int)(rest / z.heads);
        N grad = state_of(t.grad_final_state, t.tangent_grad_final_state, b, h, row, column);
        for (int number = chunks - 1; number >= 0; --number) {
            N& place = chunk_state(grads, z, b, h, number, row, column);
            const N part = place;
            place = grad;
            grad = left_of(chunk_factor(factors, z, b, h, number), grad) + part;
        }
        put_state(t.to_grad_initial_state, t.to_grad_initial_state_t, b, h, row, column, grad);
    }
}
#endif

#if PASS == 0
// A thread takes a column of a head's state through a chunk.
extern "C" __global__ void __launch_bounds__(128) linear_forward(PARAMETERS, void* states) {
    const Tensors t = TENSORS;
    const int chunks = chunks_of(z);
    const N scale = of((R)z.scale, 0);
    for (long long unit = this_thread(); unit < (long long)z.batch * z.heads * chunks * z.dim_v; unit += all_threads()) {
        const int column = (int)(unit % z.dim_v), number = (int)(unit / z.dim_v % chunks);
        const long long row = unit / z.dim_v / chunks;
        const Chunk chunk = chunk_of(z, (int)(row / z.heads), (int)(row % z.heads), number);
        const int b = chunk.b, h = chunk.h, hkv = h / z.per_kv;
        N state[DIM];
#pragma unroll UNROLLED(DIM)
        for (int i = 0; i < DIM; ++i) state[i] = i < z.dim ? chunk_state(states, z, b, h, number, i, column) : of(0, 0);
        for (int token = chunk.first; token < chunk.last; ++token) {
            const N f = factor(t, z, b, h, token), v = element(t.value, t.tangent_value, b, token, hkv, column);
            N sum = of(0, 0);
#pragma unroll UNROLLED(DIM)
            for (int i = 0; i < DIM; ++i) {
                if (i < z.dim) {
                    state[i] = f * state[i] + element(t.key, t.tangent_key, b, token, hkv, i) * v;
                    sum = sum + element(t.query, t.tangent_query, b, token, h, i) * state[i];
                }
            }
            put_element(t.to_output, t.to_output_t, b, token, h, column, scale * sum);
        }
    }
}
#endif

// Adds a head's part of a key's or a value's gradient to those of the heads before, in `sums`, and writes the last sum.
template <class A, class B>
DEVICE void add_of_head(const View<A>& values, const View<B>& tangents, const Sizes& z, int b, int token, int h, int d, int dim, N x, N* sums) {
    const int hkv = h / z.per_kv, of_group = h % z.per_kv;
    N& sum = sums[(((long long)b * z.keys + token) * z.heads_kv + hkv) * dim + d];
    const N total = of_group == 0 ? x : sum + x;
    sum = total;
    if (of_group == z.per_kv - 1) put_element(values, tangents, b, token, hkv, d, total);
}

#if PASS == 1
// A thread takes a row of the states of a key head's query heads through a chunk: gradients of queries and keys, and a
// row's part of those of the decays. `kept` has room, a thread, for a row every SEGMENT tokens and for a segment.
extern "C" __global__ void __launch_bounds__(128) linear_rows(PARAMETERS, void* states, void* grads, void* sums, void* kept, void* decays) {
    const Tensors t = TENSORS;
    const int tokens = (int)z.keys, chunks = chunks_of(z);
    const N scale = of((R)z.scale, 0);
    // Neighbouring threads have neighbouring numbers.
    const auto place = [&](int number, int j) -> N& { return ((N*)kept)[((long long)number * z.dim_v + j) * all_threads() + this_thread()]; };
    for (long long unit = this_thread(); unit < (long long)z.batch * z.heads_kv * chunks * z.dim; unit += all_threads()) {
        const int row = (int)(unit % z.dim), number = (int)(unit / z.dim % chunks);
        const long long rest = unit / z.dim / chunks;
        const int hkv = (int)(rest % z.heads_kv), b = (int)(rest / z.heads_kv);
        N state[DIM_V];
        for (int h = hkv * z.per_kv; h < (hkv + 1) * z.per_kv; ++h) {
            const Chunk chunk = chunk_of(z, b, h, number);
            const int segments = (chunk.last - chunk.first + SEGMENT - 1) / SEGMENT;
            const auto step = [&](int token) {
                const N f = factor(t, z, b, h, token), k = element(t.key, t.tangent_key, b, token, hkv, row);
#pragma unroll UNROLLED(DIM_V)
                for (int j = 0; j < DIM_V; ++j)
                    if (j < z.dim_v) state[j] = f * state[j] + k * element(t.value, t.tangent_value, b, token, hkv, j);
            };
#pragma unroll UNROLLED(DIM_V)
            for (int j = 0; j < DIM_V; ++j) state[j] = j < z.dim_v ? chunk_state(states, z, b, h, number, row, j) : of(0, 0);
            for (int token = chunk.first; token < chunk.last; ++token) {
                if ((token - chunk.first) % SEGMENT == 0) {
#pragma unroll UNROLLED(DIM_V)
                    for (int j = 0; j < DIM_V; ++j)
                        if (j < z.dim_v) place((token - chunk.first) / SEGMENT, j) = state[j];
                }
                step(token);
                N sum = of(0, 0);
#pragma unroll UNROLLED(DIM_V)
                for (int j = 0; j < DIM_V; ++j)
                    if (j < z.dim_v) sum = sum + state[j] * element(t.grad_output, t.tangent_grad_output, b, token, h, j);
                put_element(t.to_grad_query, t.to_grad_query_t, b, token, h, row, scale * sum);
            }
            N grad[DIM_V];
#pragma unroll UNROLLED(DIM_V)
            for (int j = 0; j < DIM_V; ++j) grad[j] = j < z.dim_v ? chunk_state(grads, z, b, h, number, row, j) : of(0, 0);
            for (int s = segments - 1; s >= 0; --s) {
                const int first = chunk.first + s * SEGMENT, last = least(first + SEGMENT, chunk.last);
#pragma unroll UNROLLED(DIM_V)
                for (int j = 0; j < DIM_V; ++j)
                    if (j < z.dim_v) state[j] = place(s, j);
                for (int token = first; token < last; ++token) {
#pragma unroll UNROLLED(DIM_V)
                    for (int j = 0; j < DIM_V; ++j)
                        if (j < z.dim_v) place(CHUNK / SEGMENT + token - first, j) = state[j];
                    step(token);
                }
                for (int token = last - 1; token >= first; --token) {
                    const N f = factor(t, z, b, h, token), q = scale * element(t.query, t.tangent_query, b, token, h, row);
                    N of_key = of(0, 0), of_decay = of(0, 0);
#pragma unroll UNROLLED(DIM_V)
                    for (int j = 0; j < DIM_V; ++j) {
                        if (j < z.dim_v) {
                            grad[j] = grad[j] + q * element(t.grad_output, t.tangent_grad_output, b, token, h, j);
                            of_key = of_key + grad[j] * element(t.value, t.tangent_value, b, token, hkv, j);
                            of_decay = of_decay + place(CHUNK / SEGMENT + token - first, j) * grad[j];
                            grad[j] = f * grad[j];
                        }
                    }
                    ((N*)decays)[(((long long)b * z.heads + h) * tokens + token) * z.dim + row] = f * of_decay;
                    add_of_head(t.to_grad_key, t.to_grad_key_t, z, b, token, h, row, z.dim, of_key, (N*)sums);
                }
            }
        }
    }
}
#endif

#if PASS == 2
// A thread takes a column of the states of a key head's query heads through a chunk: gradients of values.
extern "C" __global__ void __launch_bounds__(128) linear_columns(PARAMETERS, void* grads, void* sums) {
    const Tensors t = TENSORS;
    const int chunks = chunks_of(z);
    const N scale = of((R)z.scale, 0);
    for (long long unit = this_thread(); unit < (long long)z.batch * z.heads_kv * chunks * z.dim_v; unit += all_threads()) {
        const int column = (int)(unit % z.dim_v), number = (int)(unit / z.dim_v % chunks);
        const long long rest = unit / z.dim_v / chunks;
        const int hkv = (int)(rest % z.heads_kv), b = (int)(rest / z.heads_kv);
        for (int h = hkv * z.per_kv; h < (hkv + 1) * z.per_kv; ++h) {
            const Chunk chunk = chunk_of(z, b, h, number);
            N grad[DIM];
#pragma unroll UNROLLED(DIM)
            for (int i = 0; i < DIM; ++i) grad[i] = i < z.dim ? chunk_state(grads, z, b, h, number, i, column) : of(0, 0);
            for (int token = chunk.last - 1; token >= chunk.first; --token) {
                const N f = factor(t, z, b, h, token);
                const N of_output = scale * element(t.grad_output, t.tangent_grad_output, b, token, h, column);
                N of_value = of(0, 0);
#pragma unroll UNROLLED(DIM)
                for (int i = 0; i < DIM; ++i) {
                    if (i < z.dim) {
                        grad[i] = grad[i] + element(t.query, t.tangent_query, b, token, h, i) * of_output;
                        of_value = of_value + grad[i] * element(t.key, t.tangent_key, b, token, hkv, i);
                        grad[i] = f * grad[i];
                    }
                }
                add_of_head(t.to_grad_value, t.to_grad_value_t, z, b, token, h, column, z.dim_v, of_value, (N*)sums);
            }
        }
    }
}
#endif

#if PASS == 3
// Gradients of what the decay loads: a group of lanes takes tokens, and adds up the rows' parts of each.
extern "C" __global__ void __launch_bounds__(128) scatter_decays(PARAMETERS, void* decays, void* tables, Shares shares) {
    const Tensors t = TENSORS;
    const long long extent[3] = {z.batch, z.heads, z.keys};
    for (long long unit = this_group(); unit < units_of(shares, extent); unit += all_groups()) {
        R* table = (R*)tables + table_of(shares, extent, unit);
        each_row(shares, extent, unit, [&](int b, int h, long long token) {
            const N* parts = (const N*)decays + (((long long)b * z.heads + h) * z.keys + token) * z.dim;
            N sum = of(0, 0);
            for (int row = lane_of_group(); row < z.dim; row += LANES) sum = sum + parts[row];
            const R grad = group_sum(sum.v);
#if TANGENTS
            const R grad_t = group_sum(sum.t);
#else
            const R grad_t = 0;
#endif
            long long elements[LOADS];
            R gradients[LOADS];
            Decay::loads(t, site_of_token(z, b, h, (int)token), grad, grad_t, elements, gradients);
#pragma unroll
            for (int i = 0; i < LOADS; ++i) scatter(table, lane_of_group() == 0, elements[i], gradients[i]);
        });
    }
}
#endif
