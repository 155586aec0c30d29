// What every generic kernel begins with: storage types, groups of lanes, sizes, windows, tensors, and the functions that
// rendered programs call. In front of it stand the defines of the plan:
//
//   REAL     the type that is computed in, float or double
//   RANK     axes that the user gave, 1 to 3
//   DIM, DIM_V   the most elements of a query or key, and of a value
//   TANGENTS 1 where tangents are computed beside values
//
// A group of LANES lanes works together, a warp on the device. Compiled for the host, where a group is one lane, the
// same text runs in tests against the oracle.

typedef REAL R;
#define DEVICE __device__ __forceinline__

#if defined(__CUDACC__)
#define LANES 32
#define EVERY 0xffffffffu
DEVICE int lane_of_group() { return threadIdx.x & 31; }
DEVICE unsigned ballot(bool holds) { return __ballot_sync(EVERY, holds); }
DEVICE unsigned alike(long long key) { return __match_any_sync(EVERY, key); }
DEVICE void wait_for_group() { __syncwarp(); }
DEVICE void wait_for_block() { __syncthreads(); }
template <class T> DEVICE T from_lane(T x, int lane) { return __shfl_sync(EVERY, x, lane); }
template <class T> DEVICE T from_partner(T x, int distance) { return __shfl_xor_sync(EVERY, x, distance); }
DEVICE int first_bit(unsigned bits) { return __ffs(bits) - 1; }
#define DYNAMIC_SHARED(T, name) extern __shared__ __align__(128) T name[]
#elif !defined(LANES)
#define LANES 1
DEVICE int lane_of_group() { return 0; }
DEVICE unsigned ballot(bool holds) { return holds; }
DEVICE unsigned alike(long long) { return 1; }
DEVICE void wait_for_group() {}
DEVICE void wait_for_block() {}
template <class T> DEVICE T from_lane(T x, int) { return x; }
template <class T> DEVICE T from_partner(T x, int) { return x; }
DEVICE int first_bit(unsigned) { return 0; }
#endif

// The group's number among all, and how many there are.
DEVICE long long this_group() { return ((long long)blockIdx.x * blockDim.x + threadIdx.x) / LANES; }
DEVICE long long all_groups() { return (long long)gridDim.x * blockDim.x / LANES; }

// The same sum in every lane, always in the same order.
DEVICE R group_sum(R x) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) x += from_partner(x, distance);
    return x;
}

// ---------------------------------------------------------------------------------------------------- storage types

struct Half { unsigned short bits; };
struct Brain { unsigned short bits; };

#if defined(__CUDACC__)
DEVICE float float_of_bits(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned bits_of_float(float x) { return __float_as_uint(x); }
DEVICE double double_of_bits(long long bits) { return __longlong_as_double(bits); }
DEVICE long long bits_of_double(double x) { return __double_as_longlong(x); }
DEVICE float widen(Half x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
DEVICE Half to_half(float x) {
    Half y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
#else
DEVICE float float_of_bits(unsigned bits) { return __builtin_bit_cast(float, bits); }
DEVICE unsigned bits_of_float(float x) { return __builtin_bit_cast(unsigned, x); }
DEVICE double double_of_bits(long long bits) { return __builtin_bit_cast(double, bits); }
DEVICE long long bits_of_double(double x) { return __builtin_bit_cast(long long, x); }
DEVICE float widen(Half x) { return (float)__builtin_bit_cast(_Float16, x.bits); }
DEVICE Half to_half(float x) { return {__builtin_bit_cast(unsigned short, (_Float16)x)}; }
#endif
DEVICE float widen(Brain x) { return float_of_bits((unsigned)x.bits << 16); }
DEVICE Brain to_brain(float x) {
    const unsigned bits = bits_of_float(x);
    // NaN stays NaN; everything else is rounded to the nearest, ties to even.
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {(unsigned short)((bits >> 16) | 0x40)};
    return {(unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

DEVICE R number(Half x) { return widen(x); }
DEVICE R number(Brain x) { return widen(x); }
DEVICE R number(float x) { return x; }
DEVICE R number(double x) { return (R)x; }

DEVICE void put(Half* to, R x) { *to = to_half((float)x); }
DEVICE void put(Brain* to, R x) { *to = to_brain((float)x); }
DEVICE void put(float* to, R x) { *to = (float)x; }
DEVICE void put(double* to, R x) { *to = x; }

// ------------------------------------------------------------------------------------------------ sizes and windows

struct Axis {
    int queries, keys;
    // Keys of a window, queries that share one, the distance of neighbours.
    int kernel, stride, dilation;
    // 0 everything, 1 and 2 causal from the top left and to the bottom right, 3 a window, 4 a causal one.
    int kind;
};

struct Sizes {
    Axis axes[3];
    int batch, heads, heads_kv, per_kv;
    int dim, dim_v, additional, slots;
    // Tokens of the grids.
    long long queries, keys;
    double scale;
};

struct Span { int start, end; };

DEVICE int least(int a, int b) { return a < b ? a : b; }
DEVICE int most(int a, int b) { return a > b ? a : b; }

// Tokens of a residue group of a dilated axis.
DEVICE int group_len(int len, int dilation, int group) { return (len - group + dilation - 1) / dilation; }

// The keys that the query at a position of a group sees, as positions: Axis::window of natten-core.
DEVICE Span window(const Axis& axis, int group, int position) {
    if (axis.kind == 0) return {0, axis.keys};
    if (axis.kind == 1) return {0, least(position + 1, axis.keys)};
    if (axis.kind == 2) {
        const long long end = (long long)position + 1 + axis.keys - axis.queries;
        return {0, end < 0 ? 0 : end > axis.keys ? axis.keys : (int)end};
    }
    const int len = group_len(axis.keys, axis.dilation, group);
    const int block = position / axis.stride * axis.stride;
    if (axis.kind == 4) {
        const int leader = least(block + axis.stride - 1, len - 1);
        return {most(leader + 1 - axis.kernel, 0), position + 1};
    }
    const int leader = least(block + axis.stride / 2, len - 1);
    const int start = least(most(leader - axis.kernel / 2, 0), len - axis.kernel);
    return {start, start + axis.kernel};
}

// The first query of a group whose window starts at a key or behind it.
DEVICE int first_starting_at(const Axis& axis, int group, int key) {
    const int len = group_len(axis.queries, axis.dilation, group);
    if (key == 0) return 0;
    if (axis.kind < 3) return len;
    const bool causal = axis.kind == 4;
    const int needed = causal ? key + axis.kernel - 1 : key + axis.kernel / 2;
    const int offset = causal ? axis.stride - 1 : axis.stride / 2;
    if (key > most(len - axis.kernel, 0)) return len;
    return least((most(needed - offset, 0) + axis.stride - 1) / axis.stride * axis.stride, len);
}

// The queries that see the key at a position of a group: Axis::queries_of of natten-core.
DEVICE Span queries_of(const Axis& axis, int group, int position) {
    const int end = first_starting_at(axis, group, position + 1);
    int start = 0;
    if (axis.kind == 1) start = least(position, axis.queries);
    if (axis.kind == 2) {
        const long long first = (long long)position + axis.queries - axis.keys;
        start = first < 0 ? 0 : first > axis.queries ? axis.queries : (int)first;
    }
    if (axis.kind == 3) start = first_starting_at(axis, group, most(position + 1 - axis.kernel, 0));
    if (axis.kind == 4) start = position;
    return {start, most(start, end)};
}

// The coordinates of a token; beyond the grid along the first of the user's axes.
template <bool IS_QUERY> DEVICE void coordinates(const Sizes& z, long long token, int at[3]) {
    at[0] = at[1] = 0;
#pragma unroll
    for (int a = 2; a > 3 - RANK; --a) {
        const int extent = IS_QUERY ? z.axes[a].queries : z.axes[a].keys;
        at[a] = (int)(token % extent);
        token /= extent;
    }
    at[3 - RANK] = (int)token;
}

// ----------------------------------------------------------------------------------------------------------- tensors

template <class T> struct View {
    T* data;
    long long stride[8];
};

// [B, X0, X1, X2, H, D]
template <class T>
DEVICE T* vector_at(const View<T>& v, int b, const int at[3], int h) {
    return v.data + b * v.stride[0] + at[0] * v.stride[1] + at[1] * v.stride[2] + at[2] * v.stride[3] + h * v.stride[4];
}

// [B, N, H, D]
template <class T>
DEVICE T* additional_at(const View<T>& v, int b, int n, int h) {
    return v.data + b * v.stride[0] + n * v.stride[1] + h * v.stride[2];
}

// [B, H, X0, X1, X2, slot]
template <class T>
DEVICE T* slot_at(const View<T>& v, int b, int h, const int at[3], long long slot) {
    return v.data + b * v.stride[0] + h * v.stride[1] + at[0] * v.stride[2] + at[1] * v.stride[3] + at[2] * v.stride[4] +
           slot * v.stride[5];
}

// A tensor of vectors, contiguous in the workspace.
template <class T> DEVICE View<T> vectors_in(void* data, const Sizes& z, bool of_queries, int heads, int dim) {
    View<T> v = {};
    v.data = (T*)data;
    v.stride[5] = 1;
    v.stride[4] = dim;
    v.stride[3] = (long long)heads * dim;
#pragma unroll
    for (int a = 2; a >= 0; --a)
        v.stride[a] = v.stride[a + 1] * (of_queries ? z.axes[a].queries : z.axes[a].keys);
    return v;
}

// Additional vectors, contiguous in the workspace.
template <class T> DEVICE View<T> additional_in(void* data, const Sizes& z, int dim) {
    View<T> v = {};
    v.data = (T*)data;
    v.stride[3] = 1;
    v.stride[2] = dim;
    v.stride[1] = (long long)z.heads_kv * dim;
    v.stride[0] = v.stride[1] * z.additional;
    return v;
}

template <class T> DEVICE View<const T> as_const(const View<T>& v) {
    View<const T> to;
    to.data = v.data;
#pragma unroll
    for (int a = 0; a < 8; ++a) to.stride[a] = v.stride[a];
    return to;
}

template <class T> DEVICE View<T> nothing() {
    View<T> v = {};
    return v;
}

// Neighbouring elements are read 16 bytes at a time.
struct alignas(16) Words { unsigned word[4]; };
struct alignas(16) Floats { float number[4]; };
struct alignas(16) Doubles { double number[2]; };

// The elements of 16 bytes.
template <class T> DEVICE void read_piece(const T* from, R* to) {
    // Of 16 bits each.
    const Words words = *(const Words*)from;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = number(T{(unsigned short)(words.word[i] & 0xffff)});
        to[2 * i + 1] = number(T{(unsigned short)(words.word[i] >> 16)});
    }
}
DEVICE void read_piece(const float* from, R* to) {
    const Floats four = *(const Floats*)from;
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = (R)four.number[i];
}
DEVICE void read_piece(const double* from, R* to) {
    const Doubles two = *(const Doubles*)from;
    to[0] = (R)two.number[0];
    to[1] = (R)two.number[1];
}

template <class T> DEVICE void read_eight(const T* from, R (&to)[8]) {
    constexpr int PIECE = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < 8; i += PIECE) read_piece(from + i, to + i);
}

template <class T> DEVICE bool is_packed(const T* vector, long long stride) { return stride == 1 && (unsigned long long)vector % 16 == 0; }

// The inner product of two vectors. The order of its sums depends on nothing but the length, so that the products of a
// vector with two equal ones are equal: differences of such products vanish where they should. Called, not inlined:
// there are many calls of few kinds.
template <class A, class B>
__device__ __noinline__ R dot(const A* a, long long stride_a, const B* b, long long stride_b, int n) {
    R sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    const bool packed = is_packed(a, stride_a) && is_packed(b, stride_b);
    int d = 0;
#pragma unroll 2
    for (; d + 8 <= n; d += 8) {
        R of_a[8], of_b[8];
        if (packed) {
            read_eight(a + d, of_a);
            read_eight(b + d, of_b);
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                of_a[i] = number(a[(d + i) * stride_a]);
                of_b[i] = number(b[(d + i) * stride_b]);
            }
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i] += of_a[i] * of_b[i];
    }
    for (; d < n; ++d) sums[0] += number(a[d * stride_a]) * number(b[d * stride_b]);
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// ------------------------------------------------------------------------------------------------ rendered programs

// Where a function is evaluated: a query and a key, both as coordinates and as row-major numbers.
struct Site {
    int b, h, hkv;
    int q, k;
    int qc[3], kc[3];
    // The lane of a vector, and its length, in vector functions.
    int d, dim;
    // Batch entry times heads plus head: the row of random numbers.
    unsigned row;
    // The slot among the attention weights, in operations of the unfused pair.
    long long slot;
};

// NVRTC has no names for these numbers.
#if defined(__CUDACC__)
#define R_INF ((R)__int_as_float(0x7f800000))
#define R_NAN ((R)__int_as_float(0x7fffffff))
#else
#define R_INF ((R)float_of_bits(0x7f800000u))
#define R_NAN ((R)float_of_bits(0x7fc00000u))
#endif

template <class T> DEVICE bool is_nan(T x) { return x != x; }
DEVICE float f_exp(float x) { return expf(x); }
// exp within two units in the last place, without a branch, so that those of a tile run beside each other: x = n ln 2 + r,
// and exp r = 1 + r + r^2 q(r) with q through the Chebyshev nodes of |r| <= ln 2 / 2, 1.6e-17 from it.
DEVICE double f_exp(double x) {
    const double whole = 6755399441055744.0;
    const double shifted = fma(x, 1.4426950408889634, whole);
    const int n = (int)bits_of_double(shifted);
    const double rounded = shifted - whole;
    const double r = fma(rounded, -2.3190468138462996e-17, fma(rounded, -0.6931471805599453, x));
    double q = 2.510038549551032e-08;
    q = fma(q, r, 2.7620088445409746e-07);
    q = fma(q, r, 2.7557268459997064e-06);
    q = fma(q, r, 2.4801521295954376e-05);
    q = fma(q, r, 0.00019841269863053618);
    q = fma(q, r, 0.0013888888917213717);
    q = fma(q, r, 0.008333333333330062);
    q = fma(q, r, 0.04166666666662413);
    q = fma(q, r, 0.16666666666666669);
    q = fma(q, r, 0.5000000000000001);
    const double power = fma(q * r, r, r) + 1;
    // 2^n in two factors, since n goes beyond both ends of the exponents.
    const int half = n >> 1;
    const double scaled = double_of_bits(bits_of_double(power) + ((long long)half << 52));
    const double result = scaled * double_of_bits((long long)(n - half + 1023) << 52);
    // Beyond |x| = 768 n is none. Numbers are told apart by their bits: f64 compares as slowly as it multiplies.
    const long long bits = bits_of_double(x), size = bits & 0x7fffffffffffffffll;
    const double end = size > 0x7ff0000000000000ll ? x : bits < 0 ? 0.0 : (double)R_INF;
    return size >= 0x4088000000000000ll ? end : result;
}
DEVICE float f_exp2(float x) { return exp2f(x); }
DEVICE double f_exp2(double x) { return exp2(x); }
DEVICE float f_log(float x) { return logf(x); }
DEVICE double f_log(double x) { return log(x); }
DEVICE float f_log2(float x) { return log2f(x); }
DEVICE double f_log2(double x) { return log2(x); }
DEVICE float f_expm1(float x) { return expm1f(x); }
DEVICE double f_expm1(double x) { return expm1(x); }
DEVICE float f_log1p(float x) { return log1pf(x); }
DEVICE double f_log1p(double x) { return log1p(x); }
DEVICE float f_sqrt(float x) { return sqrtf(x); }
DEVICE double f_sqrt(double x) { return sqrt(x); }
DEVICE float f_tanh(float x) { return tanhf(x); }
DEVICE double f_tanh(double x) { return tanh(x); }
DEVICE float f_erf(float x) { return erff(x); }
DEVICE double f_erf(double x) { return erf(x); }
DEVICE float f_sin(float x) { return sinf(x); }
DEVICE double f_sin(double x) { return sin(x); }
DEVICE float f_cos(float x) { return cosf(x); }
DEVICE double f_cos(double x) { return cos(x); }
DEVICE float f_floor(float x) { return floorf(x); }
DEVICE double f_floor(double x) { return floor(x); }
DEVICE R f_abs(R x) { return x < 0 ? -x : x == 0 ? (R)0 : x; }
DEVICE R f_rsqrt(R x) { return (R)1 / f_sqrt(x); }
DEVICE R f_sigmoid(R x) {
    const R small = f_exp(-f_abs(x));
    return (x >= 0 ? (R)1 : small) / ((R)1 + small);
}
DEVICE R f_softplus(R x) {
    // NaN comes through the second term.
    return (x > 0 ? x : (R)0) + f_log1p(f_exp(-f_abs(x)));
}
DEVICE R f_min(R a, R b) { return a <= b || is_nan(a) ? a : b; }
DEVICE R f_max(R a, R b) { return a >= b || is_nan(a) ? a : b; }
DEVICE R f_floordiv(R a, R b) { return f_floor(a / b); }
DEVICE R f_mod(R a, R b) { return a - b * f_floor(a / b); }
DEVICE R f_powi(R x, int exponent) {
    R power = 1, square = x;
    for (unsigned rest = exponent < 0 ? 0u - (unsigned)exponent : (unsigned)exponent; rest; rest >>= 1) {
        if (rest & 1) power *= square;
        square *= square;
    }
    return exponent < 0 ? (R)1 / power : power;
}

// Integers wrap; a quotient by 0 is 0, and so is its rest.
DEVICE int i_add(int a, int b) { return (int)((unsigned)a + (unsigned)b); }
DEVICE int i_sub(int a, int b) { return (int)((unsigned)a - (unsigned)b); }
DEVICE int i_mul(int a, int b) { return (int)((unsigned)a * (unsigned)b); }
DEVICE int i_neg(int a) { return (int)(0u - (unsigned)a); }
DEVICE int i_abs(int a) { return a < 0 ? i_neg(a) : a; }
DEVICE int i_floordiv(int a, int b) {
    if (b == 0) return 0;
    if (b == -1) return i_neg(a);
    const int quotient = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}
DEVICE int i_mod(int a, int b) {
    if (b == 0 || b == -1) return 0;
    const int rest = a % b;
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
DEVICE int i_min(int a, int b) { return a < b ? a : b; }
DEVICE int i_max(int a, int b) { return a > b ? a : b; }
DEVICE int i_shl(int a, int b) { return (int)((unsigned)a << (b & 31)); }
DEVICE int i_shr(int a, int b) { return a >> (b & 31); }
DEVICE int i_of(R x) {
    const R y = f_floor(x);
    if (is_nan(y)) return 0;
    if (y >= (R)2147483648.0) return 2147483647;
    if (y < (R)-2147483648.0) return -2147483647 - 1;
    return (int)y;
}
DEVICE int clamped(int index, int extent) { return index < 0 ? 0 : index < extent ? index : extent - 1; }

// natten-core's random numbers: Philox4x32-10 of a pair.
DEVICE R random_of(const Site& at, int low, int high) {
    unsigned c0 = (unsigned)at.k / 4, c1 = (unsigned)at.q, c2 = at.row, c3 = 0;
    unsigned k0 = (unsigned)low, k1 = (unsigned)high;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long p0 = 0xd2511f53ull * c0, p1 = 0xcd9e8d57ull * c2;
        c0 = (unsigned)(p1 >> 32) ^ c1 ^ k0;
        c2 = (unsigned)(p0 >> 32) ^ c3 ^ k1;
        c1 = (unsigned)p1;
        c3 = (unsigned)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    const unsigned lane = (unsigned)at.k & 3;
    const unsigned word = lane == 0 ? c0 : lane == 1 ? c1 : lane == 2 ? c2 : c3;
    return (R)(word >> 8) * (R)(1.0 / 16777216.0);
}

// The most stages of a row, at least one so that arrays are not empty.
#ifndef STAGES
#define STAGES 1
#endif

// The numbers of a row: its stages, their cotangents, and the tangents of both.
struct Row {
    bool alive;
    R stage[STAGES], stage_t[STAGES], grad_stage[STAGES], grad_stage_t[STAGES];
    R delta, delta_t, grad_logsumexp, grad_logsumexp_t;
    // What is taken off exponents.
    R shift;
};

// The numbers of a pair, and their tangents.
struct Pair {
    R score, score_t, grad, grad_t;
};
