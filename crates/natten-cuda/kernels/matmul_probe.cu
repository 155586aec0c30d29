// How fast a GPU multiplies matrices whose elements are at hand: every multiprocessor repeats the products of a few random
// tiles, from shared memory by wgmma and from registers otherwise, and adds them up. Nothing else is done, so that the
// rate is what no kernel exceeds. Random numbers, because those switch as many wires as real ones do, and the clock
// follows the power.
//
// Printed in front: METHOD, one of the numbers below; for products of 16 bits ELEMENT_BF16; for FMA the type REAL; for
// WGMMA the function wgmma_scores(float (&)[128], u64, u64, bool), 64 rows by 256 columns by a depth of 16.

#define FMA 0
#define MMA 1
#define WGMMA 2
#define DMMA_8 3
#define DMMA_16 4

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 256

// A hash of a number, its bits as good as random (Mueller's).
__device__ __forceinline__ u32 random_bits(u32 x) {
    x = ((x >> 16) ^ x) * 0x45d9f3bu;
    x = ((x >> 16) ^ x) * 0x45d9f3bu;
    return (x >> 16) ^ x;
}

// Between -1 and 1, of any sign and of four binary orders of magnitude, in 16 bits.
__device__ __forceinline__ u32 random_16(u32 seed) {
    const u32 bits = random_bits(seed);
#if ELEMENT_BF16
    return (bits & 0x8000) | (0x3F00 - ((bits >> 16 & 3) << 7)) | (bits & 0x7F);
#else
    return (bits & 0x8000) | (0x3800 - ((bits >> 16 & 3) << 10)) | (bits & 0x3FF);
#endif
}

__device__ __forceinline__ u32 random_pair(u32 seed) { return random_16(2 * seed) | random_16(2 * seed + 1) << 16; }

// Between -1 and 1.
template <class T> __device__ __forceinline__ T random_real(u32 seed) {
    return (T)(int)random_bits(seed) * (T)(1.0 / 2147483648.0);
}

#if METHOD == WGMMA
// Two warpgroups, each with 64 rows of its own and all 256 columns, both 256 deep: tiles of 64 elements of depth one
// behind the other, in the layout of 128-byte rows shuffled in groups of eight.
#define DEPTH 256
#define CHUNKS (DEPTH / 64)
#define A_BYTES (64 * DEPTH * 2)
#define B_BYTES (256 * DEPTH * 2)

__device__ __forceinline__ u64 descriptor(u32 address) {
    return (u64)((address & 0x3FFFF) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) matmul_probe(float* results, int rounds) {
    extern __shared__ unsigned char memory[];
    const u32 start = (u32)__cvta_generic_to_shared(memory), aligned = (start + 1023) & ~1023u;
    u32* words = (u32*)(memory + (aligned - start));
    for (u32 i = threadIdx.x; i < (2 * A_BYTES + B_BYTES) / 4; i += THREADS) words[i] = random_pair(i);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const u32 a = aligned + B_BYTES + threadIdx.x / 128 * A_BYTES;
    float sums[128];
#pragma unroll
    for (int i = 0; i < 128; i++) sums[i] = 0;
    for (int round = 0; round < rounds; round++) {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < DEPTH / 16; k++)
            wgmma_scores(sums, descriptor(a + k / 4 * (A_BYTES / CHUNKS) + k % 4 * 32),
                         descriptor(aligned + k / 4 * (B_BYTES / CHUNKS) + k % 4 * 32), true);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int i = 0; i < 128; i++) asm volatile("" : "+f"(sums[i])::"memory");
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 128; i++) sum += sums[i];
    results[blockIdx.x * THREADS + threadIdx.x] = sum;
}
#endif

#if METHOD == MMA
// A warp multiplies four fragments of 16 rows by four of 8 columns, 16 deep.
extern "C" __global__ void __launch_bounds__(THREADS, 2) matmul_probe(float* results, int rounds) {
    const u32 seed = (blockIdx.x * THREADS + threadIdx.x) * 32;
    u32 a[4][4], b[4][2];
    float sums[4][4][4] = {};
#pragma unroll
    for (int i = 0; i < 16; i++) a[i / 4][i % 4] = random_pair(seed + i);
#pragma unroll
    for (int i = 0; i < 8; i++) b[i / 2][i % 2] = random_pair(seed + 16 + i);
    for (int round = 0; round < rounds; round++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float(&c)[4] = sums[i][j];
#if ELEMENT_BF16
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
                             : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                             : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
            }
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 64; i++) sum += sums[i / 16][i / 4 % 4][i % 4];
    results[blockIdx.x * THREADS + threadIdx.x] = sum;
}
#endif

#if METHOD == DMMA_8
// A warp multiplies four fragments of 8 rows by four of 8 columns, 4 deep, in f64.
extern "C" __global__ void __launch_bounds__(THREADS, 2) matmul_probe(double* results, int rounds) {
    const u32 seed = (blockIdx.x * THREADS + threadIdx.x) * 8;
    double a[4], b[4], sums[4][4][2] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        a[i] = random_real<double>(seed + i);
        b[i] = random_real<double>(seed + 4 + i);
    }
    for (int round = 0; round < rounds; round++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                             : "+d"(sums[i][j][0]), "+d"(sums[i][j][1])
                             : "d"(a[i]), "d"(b[j]));
    }
    double sum = 0;
#pragma unroll
    for (int i = 0; i < 32; i++) sum += sums[i / 8][i / 2 % 4][i % 2];
    results[blockIdx.x * THREADS + threadIdx.x] = sum;
}
#endif

#if METHOD == DMMA_16
// A warp multiplies two fragments of 16 rows by two of 8 columns, 16 deep, in f64.
extern "C" __global__ void __launch_bounds__(THREADS, 2) matmul_probe(double* results, int rounds) {
    const u32 seed = (blockIdx.x * THREADS + threadIdx.x) * 32;
    double a[2][8], b[2][4], sums[2][2][4] = {};
#pragma unroll
    for (int i = 0; i < 16; i++) a[i / 8][i % 8] = random_real<double>(seed + i);
#pragma unroll
    for (int i = 0; i < 8; i++) b[i / 4][i % 4] = random_real<double>(seed + 16 + i);
    for (int round = 0; round < rounds; round++) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                double(&c)[4] = sums[i][j];
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7,%8,%9,%10,%11}, "
                             "{%12,%13,%14,%15}, {%0,%1,%2,%3};"
                             : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
                             : "d"(a[i][0]), "d"(a[i][1]), "d"(a[i][2]), "d"(a[i][3]), "d"(a[i][4]), "d"(a[i][5]),
                               "d"(a[i][6]), "d"(a[i][7]), "d"(b[j][0]), "d"(b[j][1]), "d"(b[j][2]), "d"(b[j][3]));
            }
    }
    double sum = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) sum += sums[i / 8][i / 4 % 2][i % 4];
    results[blockIdx.x * THREADS + threadIdx.x] = sum;
}
#endif

#if METHOD == FMA
// Said in so many words, because products that repeat would otherwise be computed once and only added.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// A thread multiplies eight rows by four columns.
extern "C" __global__ void __launch_bounds__(THREADS, 2) matmul_probe(REAL* results, int rounds) {
    const u32 seed = (blockIdx.x * THREADS + threadIdx.x) * 16;
    REAL a[8], b[4], sums[8][4] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        a[i] = random_real<REAL>(seed + i);
        if (i < 4) b[i] = random_real<REAL>(seed + 8 + i);
    }
    for (int round = 0; round < rounds; round++) {
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] = multiply_add(a[i], b[j], sums[i][j]);
    }
    REAL sum = 0;
#pragma unroll
    for (int i = 0; i < 32; i++) sum += sums[i / 4][i % 4];
    results[blockIdx.x * THREADS + threadIdx.x] = sum;
}
#endif
