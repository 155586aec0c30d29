// A block of THREADS_OF_BLOCK threads on the host, as fibers: one runs until it has to wait for others, so that a block is
// one thread of the host and always does the same. What warps exchange lies in slots, one a thread.

#include <string.h>
#include <ucontext.h>

#define LANES 32
#define __shared__ static
#define DYNAMIC_SHARED(T, name) T* const name = (T*)dynamic_shared

struct Three { unsigned x; };

static int current;
static Three blockIdx, gridDim;
static const Three blockDim = {THREADS_OF_BLOCK};
#define threadIdx (Three{(unsigned)current})

alignas(128) static char dynamic_shared[228 << 10];

static ucontext_t scheduler, fibers[THREADS_OF_BLOCK];
static bool is_done[THREADS_OF_BLOCK];
static char stacks[THREADS_OF_BLOCK][1 << 18];

struct Barrier {
    int arrived;
    unsigned generation;
    void wait(int size) {
        const unsigned mine = generation;
        if (++arrived == size) {
            arrived = 0;
            ++generation;
        }
        while (generation == mine) swapcontext(&fibers[current], &scheduler);
    }
};
static Barrier of_block, of_warp[THREADS_OF_BLOCK / LANES];

inline void __syncthreads() { of_block.wait(THREADS_OF_BLOCK); }
inline int lane_of_group() { return current % LANES; }
inline void wait_for_group() { of_warp[current / LANES].wait(LANES); }
inline void wait_for_block() { __syncthreads(); }
inline int first_bit(unsigned bits) { return __builtin_ctz(bits); }

struct Slot { alignas(16) char bytes[64]; };
static Slot slots[THREADS_OF_BLOCK];

// What `of` makes of the values of a warp, by lane.
template <class T, class Of> auto exchange(const T& mine, Of of) {
    static_assert(sizeof(T) <= sizeof(Slot), "larger slots");
    memcpy(slots[current].bytes, &mine, sizeof(T));
    wait_for_group();
    const Slot* const warp = slots + current / LANES * LANES;
    const auto result = of([warp](int lane) {
        T value;
        memcpy(&value, warp[lane].bytes, sizeof(T));
        return value;
    });
    wait_for_group();
    return result;
}

template <class T> T from_lane(T x, int lane) {
    return exchange(x, [=](auto of) { return of(lane); });
}
template <class T> T from_partner(T x, int distance) {
    return exchange(x, [=](auto of) { return of(lane_of_group() ^ distance); });
}
template <class T> unsigned lanes_where(T x, bool (*holds)(T, T)) {
    return exchange(x, [=](auto of) {
        unsigned bits = 0;
        for (int lane = 0; lane < LANES; ++lane) bits |= (unsigned)holds(x, of(lane)) << lane;
        return bits;
    });
}
inline unsigned ballot(bool holds) {
    return lanes_where<bool>(holds, [](bool, bool other) { return other; });
}
inline unsigned alike(long long key) {
    return lanes_where<long long>(key, [](long long mine, long long other) { return mine == other; });
}

inline bool __syncthreads_and(bool holds) {
    static bool all[2];
    static unsigned turn;
    const unsigned mine = turn % 2;
    __syncthreads();
    all[mine] = true;
    __syncthreads();
    if (!holds) all[mine] = false;
    __syncthreads();
    if (current == 0) ++turn;
    return all[mine];
}

// The tensor cores' product, of the fragments that multiply() describes.
inline void multiply_on_host(double& c00, double& c01, double& c10, double& c11, const double (&a)[2][2], double b0, double b1) {
    struct Fragment { double a[2][2], b[2]; };
    Fragment mine;
    memcpy(mine.a, a, sizeof(mine.a));
    mine.b[0] = b0;
    mine.b[1] = b1;
    const int row = current % LANES / 4, column = current % 4 * 2;
    struct Sums { double of[2][2]; };
    const Sums sums = exchange(mine, [=](auto of) {
        Sums sums = {};
        for (int r = 0; r < 2; ++r)
            for (int c = 0; c < 2; ++c)
                for (int depth = 0; depth < 8; ++depth) {
                    const int t = depth / 2, place = depth % 2;
                    sums.of[r][c] += of(row * 4 + t).a[r][place] * of((column + c) * 4 + t).b[place];
                }
        return sums;
    });
    c00 += sums.of[0][0];
    c01 += sums.of[0][1];
    c10 += sums.of[1][0];
    c11 += sums.of[1][1];
}

// Runs blocks one after the other.
template <class Kernel> void run_blocks(unsigned blocks, Kernel kernel) {
    static Kernel* running;
    running = &kernel;
    gridDim.x = blocks;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        // NaN, for those who read what was never written.
        memset(dynamic_shared, 0xff, sizeof(dynamic_shared));
        for (int thread = 0; thread < THREADS_OF_BLOCK; ++thread) {
            is_done[thread] = false;
            getcontext(&fibers[thread]);
            fibers[thread].uc_stack.ss_sp = stacks[thread];
            fibers[thread].uc_stack.ss_size = sizeof(stacks[thread]);
            fibers[thread].uc_link = &scheduler;
            makecontext(&fibers[thread], [] {
                (*running)();
                is_done[current] = true;
            }, 0);
        }
        for (int left = THREADS_OF_BLOCK; left > 0;) {
            left = 0;
            for (current = 0; current < THREADS_OF_BLOCK; ++current) {
                if (is_done[current]) continue;
                swapcontext(&scheduler, &fibers[current]);
                left += !is_done[current];
            }
        }
    }
}
