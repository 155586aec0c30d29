// The instructions of the Hopper forward kernel (forward_sm90.cu) that C++ has no words for: barriers in shared memory,
// loads of boxes by the bulk copy engine, wgmma's descriptors and fences, and quick functions of f32.

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 phase) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra finished;\n"
                 "bra again;\n"
                 "finished:\n"
                 "}\n" ::"r"(barrier),
                 "r"(phase)
                 : "memory");
}

// The copy engine spans at most 256 tokens of an axis, the skipped ones of a dilated axis counted: longer boxes are
// loaded in parts along the last axis.
template <class A> constexpr int parts(int tokens) {
    int parts = 1;
    while (tokens / parts * A::DILATION > 256) parts *= 2;
    return parts;
}
constexpr int QUERY_PARTS = parts<A2>(SUB2), KEY_PARTS = parts<A2>(KEYS2);
static_assert(QUERY_PARTS == 1 || (SUB2 == ROWS && SUB2 % (8 * QUERY_PARTS) == 0), "parts are whole swizzle patterns");
static_assert(KEY_PARTS == 1 || (KEYS2 == BOX_KEYS && KEYS2 % (8 * KEY_PARTS) == 0), "parts are whole swizzle patterns");

// Loads one box of a chunk of columns: (column, head) of the tokens that start at (x, y, z) of a batch entry.
__device__ __forceinline__ void load_box(u32 to, const TensorMap &map, u32 barrier, int head, int head_dim, int column,
                                         int x, int y, int z, int batch) {
    int c0 = FOLD_HEADS ? head * head_dim + column : column;
    int c1 = FOLD_HEADS ? z : head;
    int c2 = FOLD_HEADS ? y : z;
    int c3 = FOLD_HEADS ? x : y;
    // Without folding, maps have five axes only where the first token axis has one token.
    int c4 = FOLD_HEADS || A0::QUERIES * A0::KEYS == 1 ? batch : x;
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(to),
                 "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(barrier)
                 : "memory");
}

// A swizzled operand whose rows are a chunk: lead is the distance of neighbouring chunks (unused along the reduction).
__device__ __forceinline__ u64 descriptor(u32 address, u32 lead) {
    return (u64)((address & 0x3FFFF) >> 4) | (u64)(lead >> 4) << 16 | (u64)(8 * PITCH >> 4) << 32 |
           (u64)(CHUNK == 64 ? 1 : 2) << 62;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

template <int N> __device__ __forceinline__ void hold(float (&registers)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(registers[i])::"memory");
}
