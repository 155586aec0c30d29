// Vector functions of queries, keys and values: a group of lanes takes a vector. VECTORS is 0 for queries, 1 for keys or
// values of the grid, 2 for those of additional tokens. In front stands `vector_function`, which shows its body every
// element with the function's results there, and where loads of the function lie.
//
// `vectors` writes the results of the elements: a function's values and their tangents, or the gradients of what it is
// of. `scatter_vectors` adds up the gradients of a captured tensor, as `scatter_pairs` does.

// Vectors of a batch entry: heads and tokens.
DEVICE int heads_of_vectors(const Sizes& z) { return VECTORS == 0 ? z.heads : z.heads_kv; }
DEVICE long long tokens_of_vectors(const Sizes& z) { return VECTORS == 0 ? z.queries : VECTORS == 1 ? z.keys : z.additional; }

DEVICE Site site_of_vector(const Sizes& z, int b, int h, long long token) {
    Site at = {};
    at.b = b;
    at.h = h;
    at.hkv = VECTORS == 0 ? h / z.per_kv : h;
    at.row = (unsigned)((long long)b * z.heads + h);
    const long long number = VECTORS == 2 ? z.keys + token : token;
    at.q = at.k = (int)number;
    coordinates<VECTORS == 0>(z, number, at.kc);
#pragma unroll
    for (int a = 0; a < 3; ++a) at.qc[a] = at.kc[a];
    return at;
}

template <class T> DEVICE T* vector_of(const View<T>& v, const Sizes& z, const Site& at) {
    if (VECTORS == 2) return additional_at(v, at.b, at.k - (int)z.keys, at.h);
    return vector_at(v, at.b, at.kc, at.h);
}

// Reads an element of a vector, or zero where there is no such tensor.
template <class T> struct Element {
    const T* vector;
    long long stride;
    DEVICE R operator()(int d) const { return vector ? number(vector[d * stride]) : (R)0; }
};

template <class T> DEVICE Element<T> elements_of(const View<const T>& v, const Sizes& z, const Site& at) {
    return {v.data ? vector_of(v, z, at) : nullptr, v.stride[VECTORS == 2 ? 3 : 5]};
}

template <class T> DEVICE void put_element(const View<T>& v, const Sizes& z, const Site& at, int d, R x) {
    if (v.data) put(vector_of(v, z, at) + d * v.stride[VECTORS == 2 ? 3 : 5], x);
}

#define EACH_ELEMENT(BODY)                                                                                             \
    vector_function(t, at, OF_VALUES ? z.dim_v : z.dim, elements_of(t.x, z, at), elements_of(t.tangent_x, z, at),      \
                    elements_of(t.gx, z, at), elements_of(t.tangent_gx, z, at), BODY)

#if !SCATTER_VECTORS
extern "C" __global__ void __launch_bounds__(128) vectors(PARAMETERS) {
    const Tensors t = TENSORS;
    const int heads = heads_of_vectors(z);
    const long long tokens = tokens_of_vectors(z), count = z.batch * heads * tokens;
    for (long long number = this_group(); number < count; number += all_groups()) {
        const Site at = site_of_vector(z, (int)(number / tokens / heads), (int)(number / tokens % heads), number % tokens);
        const auto body = [&](int d, bool live, const R* results, const long long*) {
            if (!live) return;
            put_element(t.to_x, z, at, d, results[0]);
            put_element(t.to_x_t, z, at, d, results[1]);
        };
        EACH_ELEMENT(body);
    }
}
#else
extern "C" __global__ void __launch_bounds__(128) scatter_vectors(PARAMETERS, void* tables, Shares shares) {
    const Tensors t = TENSORS;
    const long long extent[3] = {z.batch, heads_of_vectors(z), tokens_of_vectors(z)};
    for (long long unit = this_group(); unit < units_of(shares, extent); unit += all_groups()) {
        R* table = (R*)tables + table_of(shares, extent, unit);
        each_row(shares, extent, unit, [&](int b, int h, long long token) {
            const Site at = site_of_vector(z, b, h, token);
            const auto body = [&](int, bool live, const R* results, const long long* elements) {
#pragma unroll
                for (int i = 0; i < LOADS; ++i) scatter(table, live, elements[i], results[i]);
            };
            EACH_ELEMENT(body);
        });
    }
}
#endif
