// Loads a box a block by the bulk copy engine, and copies shared memory out as it is.

typedef unsigned short u16;
typedef unsigned int u32;

struct alignas(64) TensorMap {
    unsigned long long opaque[16];
};

extern "C" __global__ void __launch_bounds__(128) load_boxes(const __grid_constant__ TensorMap map, u16* results, const int* starts, int elements) {
    extern __shared__ unsigned char memory[];
    __shared__ alignas(8) unsigned long long barrier_memory;
    const u32 start = (u32)__cvta_generic_to_shared(memory), box = (start + 1023) & ~1023u;
    const u32 barrier = (u32)__cvta_generic_to_shared(&barrier_memory);
    // What the engine leaves out must show.
    u16* at = (u16*)(memory + (box - start));
    for (int i = threadIdx.x; i < elements; i += blockDim.x) at[i] = 0xdead;
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        const int* c = starts + 5 * blockIdx.x;
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(2 * elements) : "memory");
        asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                     "[%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(box),
                     "l"(&map), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4]), "r"(barrier)
                     : "memory");
    }
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n"
                 "@!done bra again;\n"
                 "}\n" ::"r"(barrier)
                 : "memory");
    for (int i = threadIdx.x; i < elements; i += blockDim.x) results[(long long)blockIdx.x * elements + i] = at[i];
}
