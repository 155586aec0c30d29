// What the Hopper forward kernel (forward_sm90.cu, which says what is printed in front) knows of places: windows, query
// boxes and key boxes, the walks over them, and the bits that mask a key box for a row.

struct alignas(64) TensorMap {
    u64 opaque[16];
};

constexpr int WARPGROUPS = GROUPS0 * GROUPS1 * GROUPS2;
constexpr int ROWS = 64;
constexpr int PITCH = 2 * CHUNK;
// Chunks of a plane.
constexpr int CHUNKS = (HEAD_DIM + CHUNK - 1) / CHUNK;
constexpr int CHUNKS_V = (HEAD_DIM_V + CHUNK - 1) / CHUNK;
// Columns of a row: planes one behind the other are whole chunks.
constexpr int COLUMNS = PLANES == 1 ? HEAD_DIM : PLANES * CHUNKS * CHUNK;
constexpr int COLUMNS_V = PLANES == 1 ? HEAD_DIM_V : PLANES * CHUNKS_V * CHUNK;
constexpr int STEPS = (HEAD_DIM + 15) / 16;
constexpr int QUERY_BYTES = WARPGROUPS * ROWS * PLANES * CHUNKS * PITCH;
constexpr int KEY_BYTES = BOX_KEYS * PLANES * CHUNKS * PITCH;
constexpr int VALUE_BYTES = BOX_KEYS * PLANES * CHUNKS_V * PITCH;
constexpr int THREADS = 128 * (WARPGROUPS + 1);
constexpr int BITS = BOX_KEYS / 4;
static_assert(SUB0 * SUB1 * SUB2 == ROWS, "a warpgroup has 64 rows");
static_assert(KEYS0 * KEYS1 * KEYS2 == BOX_KEYS && BOX_KEYS % 16 == 0, "a key box is whole steps of 16");
static_assert(KEYS2 % 8 == 0 || (KEYS2 == 4 && KEYS1 % 2 == 0), "mask bits follow the innermost axis");

constexpr int ADDITIONAL_BOXES = (ADDITIONAL + BOX_KEYS - 1) / BOX_KEYS;

// Blocks take items in turns, forth and back, so that what is sorted by size is dealt evenly.
__device__ __forceinline__ int item_of(int round) {
    return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

// A ring position and how often it was passed.
template <int LENGTH> struct Place {
    u32 index, phase;
    __device__ __forceinline__ void next() {
        if (++index == LENGTH) {
            index = 0;
            phase ^= 1;
        }
    }
};

typedef Place<RING> Slot;

struct Shared {
    u32 query, key, value;
    u32 barriers;
    __device__ __forceinline__ u32 key_full(u32 slot) const { return barriers + 8 * slot; }
    __device__ __forceinline__ u32 key_empty(u32 slot) const { return barriers + 8 * (RING + slot); }
    __device__ __forceinline__ u32 value_full(u32 slot) const { return barriers + 8 * (2 * RING + slot); }
    __device__ __forceinline__ u32 value_empty(u32 slot) const { return barriers + 8 * (3 * RING + slot); }
    __device__ __forceinline__ u32 query_full(u32 slot) const { return barriers + 8 * (4 * RING + slot); }
    __device__ __forceinline__ u32 query_empty(u32 slot) const { return barriers + 8 * (4 * RING + QUERY_RING + slot); }
};

// Mask bits of a thread: bit 2j+e is column 8j + 2*(lane%4) + e of a key box. A row's bits are the product of three
// axes, so each axis is a range of bits, repeated over the axes around it.
#if BOX_KEYS > 128
typedef u64 Bits;
#else
typedef u32 Bits;
#endif

__device__ __forceinline__ Bits bits_below(int n) {
    if (n >= (int)sizeof(Bits) * 8) return ~(Bits)0;
    return ((Bits)1 << n) - 1;
}

__device__ __forceinline__ Bits bit_range(int from, int to) { return bits_below(to) & ~bits_below(from); }

constexpr Bits repeat(int period, int times) {
    Bits ones = 0;
    for (int i = 0; i < times; i++) ones |= (Bits)1 << (i * period);
    return ones;
}

// How many of a thread's columns, counted along the innermost axis, lie before v.
template <int SPAN> __device__ __forceinline__ int columns_before(int v, int quad) {
    if (SPAN >= 8) {
        int shifted = clip(v, SPAN) - 2 * quad;
        return 2 * (shifted >> 3) + min(shifted & 7, 2);
    }
    return clip(v - 2 * (quad & 1), 2);
}

__device__ __forceinline__ Bits box_bits(int first0, int end0, int first1, int end1, int first2, int end2, int quad) {
    constexpr int UNIT = KEYS2 >= 8 ? KEYS2 / 4 : 2;
    constexpr int UNITS = KEYS2 >= 8 ? KEYS1 : KEYS1 / 2;
    Bits bits = bit_range(columns_before<KEYS2>(first2, quad), columns_before<KEYS2>(end2, quad));
    if (KEYS0 * UNITS > 1) bits *= repeat(UNIT, KEYS0 * UNITS);
    if (A1::KEYS > 1) {
        int from = clip(first1, KEYS1), to = clip(end1, KEYS1);
        if (KEYS2 < 8) {
            from = (from + 1 - (quad >> 1)) >> 1;
            to = (to + 1 - (quad >> 1)) >> 1;
        }
        bits &= bit_range(from * UNIT, to * UNIT) * repeat(UNIT * UNITS, KEYS0);
    }
    if (A0::KEYS > 1) bits &= bit_range(clip(first0, KEYS0) * UNIT * UNITS, clip(end0, KEYS0) * UNIT * UNITS);
    return bits;
}

// Whether the queries between two corners all see all of a key box.
__device__ __forceinline__ bool sees_all(const Window &low, const Window &high, const Walk &walk) {
    return high.first0 <= walk.key0 && walk.key0 + KEYS0 <= low.end0 && high.first1 <= walk.key1 &&
           walk.key1 + KEYS1 <= low.end1 && high.first2 <= walk.key2 && walk.key2 + KEYS2 <= low.end2;
}
