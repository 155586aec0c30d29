// What the Hopper forward kernel (forward_sm90.cu, which says what is printed in front) knows of places: windows, query
// boxes and key boxes, the walks over them, and the bits that mask a key box for a row.

enum Kind { EVERYTHING = 0, CAUSAL_TOP_LEFT = 1, CAUSAL_BOTTOM_RIGHT = 2, WINDOW = 3, CAUSAL_WINDOW = 4 };

struct alignas(64) TensorMap {
    u64 opaque[16];
};

// An output with its strides in elements: batch, three token axes, head and, of the output, column.
template <class T> struct View {
    T *data;
    i64 stride[8];
    __device__ __forceinline__ T *at(int batch, int x, int y, int z, int head) const {
        return data + (batch * stride[0] + x * stride[1] + y * stride[2] + z * stride[3] + head * stride[4]);
    }
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
constexpr float LOG2_E = 1.4426950408889634f, LOG_2 = 0.6931471805599453f;
#define NO_SCORE __int_as_float(0xff800000)
// A scale that is not positive would turn the maximum into a minimum, and functions of scores take scaled ones: such
// scores are scaled before the softmax.
constexpr bool SCALE_FIRST = !(SCALE > 0.0f) || PROGRAM;
constexpr float EXPONENT = (SCALE_FIRST ? 1.0f : SCALE) * LOG2_E;
// How far, in powers of two, a row's maximum may grow before its sums are rescaled.
constexpr float SLACK = 8.0f;

static_assert(SUB0 * SUB1 * SUB2 == ROWS, "a warpgroup has 64 rows");
static_assert(KEYS0 * KEYS1 * KEYS2 == BOX_KEYS && BOX_KEYS % 16 == 0, "a key box is whole steps of 16");
static_assert(KEYS2 % 8 == 0 || (KEYS2 == 4 && KEYS1 % 2 == 0), "mask bits follow the innermost axis");

template <int QUERIES_, int KEYS_, int KIND, int WINDOW_, int STRIDE, int DILATION_> struct Axis {
    static constexpr int QUERIES = QUERIES_;
    static constexpr int KEYS = KEYS_;
    static constexpr int DILATION = DILATION_;

    static __device__ __forceinline__ int queries(int group) { return (QUERIES - group + DILATION - 1) / DILATION; }
    static __device__ __forceinline__ int keys(int group) { return (KEYS - group + DILATION - 1) / DILATION; }

    // The first key that the query at position p of a residue group sees.
    static __device__ __forceinline__ int first(int group, int p) {
        if (KIND == WINDOW) {
            int leader = min(p / STRIDE * STRIDE + STRIDE / 2, keys(group) - 1);
            return min(max(leader - WINDOW_ / 2, 0), keys(group) - WINDOW_);
        }
        if (KIND == CAUSAL_WINDOW) {
            int leader = min(p / STRIDE * STRIDE + STRIDE - 1, keys(group) - 1);
            return max(leader - (WINDOW_ - 1), 0);
        }
        return 0;
    }

    // One past the last key that it sees.
    static __device__ __forceinline__ int end(int group, int p) {
        if (KIND == WINDOW) return first(group, p) + WINDOW_;
        if (KIND == CAUSAL_WINDOW || KIND == CAUSAL_TOP_LEFT) return min(p + 1, keys(group));
        if (KIND == CAUSAL_BOTTOM_RIGHT) return min(max(p + 1 + KEYS - QUERIES, 0), KEYS);
        return KEYS;
    }
};

typedef Axis<AXIS0> A0;
typedef Axis<AXIS1> A1;
typedef Axis<AXIS2> A2;

constexpr int TILE0 = SUB0 * GROUPS0;
constexpr int TILE1 = SUB1 * GROUPS1;
constexpr int TILE2 = SUB2 * GROUPS2;

template <class A, int TILE> constexpr int pieces() {
    return ((A::QUERIES + A::DILATION - 1) / A::DILATION + TILE - 1) / TILE;
}

constexpr int PIECES0 = pieces<A0, TILE0>(), PIECES1 = pieces<A1, TILE1>(), PIECES2 = pieces<A2, TILE2>();
constexpr int QUERY_BOXES = PIECES0 * A0::DILATION * PIECES1 * A1::DILATION * PIECES2 * A2::DILATION;
constexpr int ITEMS = QUERY_BOXES * BATCH * HEADS;
constexpr int ADDITIONAL_BOXES = (ADDITIONAL + BOX_KEYS - 1) / BOX_KEYS;

// Blocks take items in turns, forth and back, so that what is sorted by size is dealt evenly.
__device__ __forceinline__ int item_of(int round) {
    return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

// What a block does next: which queries of which head, and the box of keys that they see.
struct Item {
    int head, batch;
    int group0, group1, group2;
    int query0, query1, query2;
    int key0, key1, key2;
    int boxes0, boxes1, boxes2;

    __device__ __forceinline__ explicit Item(int index) {
        int section = index / (SECTION * QUERY_BOXES);
        int size = min(SECTION, BATCH * HEADS - section * SECTION);
        int rest = index - section * (SECTION * QUERY_BOXES);
        int row = section * SECTION + rest % size;
        int box = rest / size;
        if (REVERSE) box = QUERY_BOXES - 1 - box;
        head = row % HEADS;
        batch = row / HEADS;
        axis<A2, TILE2, KEYS2, PIECES2>(box, group2, query2, key2, boxes2);
        axis<A1, TILE1, KEYS1, PIECES1>(box, group1, query1, key1, boxes1);
        axis<A0, TILE0, KEYS0, PIECES0>(box, group0, query0, key0, boxes0);
    }

    // Splits the innermost axis off a box number; a box beyond the end of a shorter residue group sees no keys.
    template <class A, int TILE, int STEP, int PIECES>
    __device__ __forceinline__ void axis(int &box, int &group, int &query, int &key, int &boxes) {
        int piece = box % PIECES;
        box /= PIECES;
        group = box % A::DILATION;
        box /= A::DILATION;
        query = piece * TILE;
        int last = min(query + TILE, A::queries(group)) - 1;
        key = A::first(group, query);
        boxes = last < query ? 0 : max(A::end(group, last) - key + STEP - 1, 0) / STEP;
    }

    __device__ __forceinline__ int window_boxes() const { return boxes0 * boxes1 * boxes2; }
};

// The key boxes of an item in order, the last axis fastest.
struct Walk {
    int key0, key1, key2;
    int at1, at2;

    __device__ __forceinline__ explicit Walk(const Item &item)
        : key0(item.key0), key1(item.key1), key2(item.key2), at1(0), at2(0) {}

    __device__ __forceinline__ void next(const Item &item) {
        key2 += KEYS2;
        if (++at2 < item.boxes2) return;
        at2 = 0;
        key2 = item.key2;
        key1 += KEYS1;
        if (++at1 < item.boxes1) return;
        at1 = 0;
        key1 = item.key1;
        key0 += KEYS0;
    }
};

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

__device__ __forceinline__ int clip(int v, int most) { return min(max(v, 0), most); }

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

// The windows of one query, in group coordinates.
struct Window {
    int first0, end0, first1, end1, first2, end2;

    __device__ __forceinline__ Window(const Item &item, int q0, int q1, int q2) {
        first0 = A0::first(item.group0, min(q0, A0::queries(item.group0) - 1));
        end0 = A0::end(item.group0, min(q0, A0::queries(item.group0) - 1));
        first1 = A1::first(item.group1, min(q1, A1::queries(item.group1) - 1));
        end1 = A1::end(item.group1, min(q1, A1::queries(item.group1) - 1));
        first2 = A2::first(item.group2, min(q2, A2::queries(item.group2) - 1));
        end2 = A2::end(item.group2, min(q2, A2::queries(item.group2) - 1));
    }
};

// Whether the queries between two corners all see all of a key box.
__device__ __forceinline__ bool sees_all(const Window &low, const Window &high, const Walk &walk) {
    return high.first0 <= walk.key0 && walk.key0 + KEYS0 <= low.end0 && high.first1 <= walk.key1 &&
           walk.key1 + KEYS1 <= low.end1 && high.first2 <= walk.key2 && walk.key2 + KEYS2 <= low.end2;
}
