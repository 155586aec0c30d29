// What the forward kernels on tensor cores share: axes and their windows, query boxes and the walk over the key boxes
// that they see, the exponent of the softmax. In front of it stand forward_instructions.cu and the constants that are
// described in forward_sm90.cu and forward_mma.cu; TILE0 TILE1 TILE2 is the query box of a block.

enum Kind { EVERYTHING = 0, CAUSAL_TOP_LEFT = 1, CAUSAL_BOTTOM_RIGHT = 2, WINDOW = 3, CAUSAL_WINDOW = 4 };

// An output with its strides in elements: batch, three token axes, head and, of the output, column.
template <class T> struct View {
    T *data;
    i64 stride[8];
    __device__ __forceinline__ T *at(int batch, int x, int y, int z, int head) const {
        return data + (batch * stride[0] + x * stride[1] + y * stride[2] + z * stride[3] + head * stride[4]);
    }
};

constexpr float LOG2_E = 1.4426950408889634f, LOG_2 = 0.6931471805599453f;
#define NO_SCORE __int_as_float(0xff800000)
// A scale that is not positive would turn the maximum into a minimum, and functions of scores take scaled ones: such
// scores are scaled before the softmax.
constexpr bool SCALE_FIRST = !(SCALE > 0.0f) || PROGRAM;
constexpr float EXPONENT = (SCALE_FIRST ? 1.0f : SCALE) * LOG2_E;
// How far, in powers of two, a row's maximum may grow before its sums are rescaled.
constexpr float SLACK = 8.0f;

template <int QUERIES_, int KEYS_, int KIND, int WINDOW_, int STRIDE_, int DILATION_> struct Axis {
    static constexpr int QUERIES = QUERIES_;
    static constexpr int KEYS = KEYS_;
    static constexpr int WINDOW = WINDOW_;
    static constexpr int STRIDE = STRIDE_;
    static constexpr int DILATION = DILATION_;
    static constexpr bool IS_CENTRED = KIND == ::WINDOW;
    static constexpr bool HAS_WINDOW = IS_CENTRED || KIND == CAUSAL_WINDOW;

    static __device__ __forceinline__ int queries(int group) { return (QUERIES - group + DILATION - 1) / DILATION; }
    static __device__ __forceinline__ int keys(int group) { return (KEYS - group + DILATION - 1) / DILATION; }

    // The first key that the query at position p of a residue group sees.
    static __device__ __forceinline__ int first(int group, int p) {
        if (IS_CENTRED) {
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
        if (IS_CENTRED) return first(group, p) + WINDOW_;
        if (KIND == CAUSAL_WINDOW || KIND == CAUSAL_TOP_LEFT) return min(p + 1, keys(group));
        if (KIND == CAUSAL_BOTTOM_RIGHT) return min(max(p + 1 + KEYS - QUERIES, 0), KEYS);
        return KEYS;
    }
};

typedef Axis<AXIS0> A0;
typedef Axis<AXIS1> A1;
typedef Axis<AXIS2> A2;

template <class A, int TILE> constexpr int pieces() {
    return ((A::QUERIES + A::DILATION - 1) / A::DILATION + TILE - 1) / TILE;
}

constexpr int PIECES0 = pieces<A0, TILE0>(), PIECES1 = pieces<A1, TILE1>(), PIECES2 = pieces<A2, TILE2>();
constexpr int QUERY_BOXES = PIECES0 * A0::DILATION * PIECES1 * A1::DILATION * PIECES2 * A2::DILATION;
constexpr int ITEMS = QUERY_BOXES * BATCH * HEADS;

// What a block does next: which queries of which head, and the box of keys that they see.
struct Item {
    int head, batch;
    int group0, group1, group2;
    int query0, query1, query2;
    int key0, key1, key2;
    int boxes0, boxes1, boxes2;

    __device__ __forceinline__ explicit Item(int index) {
        int section = index / (SECTION * QUERY_BOXES);
        int size = BATCH * HEADS % SECTION == 0 ? SECTION : min(SECTION, BATCH * HEADS - section * SECTION);
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

__device__ __forceinline__ int clip(int v, int most) { return min(max(v, 0), most); }

// Four values of a quad's four threads change places: thread t ends up with number t of each, in order.
__device__ __forceinline__ void transpose_quad(u32 (&v)[4], int quad) {
    bool odd = quad & 1, upper = quad & 2;
    u32 a = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 1), b = __shfl_xor_sync(~0u, odd ? v[2] : v[3], 1);
    if (odd) { v[0] = a; v[2] = b; } else { v[1] = a; v[3] = b; }
    a = __shfl_xor_sync(~0u, upper ? v[0] : v[2], 2), b = __shfl_xor_sync(~0u, upper ? v[1] : v[3], 2);
    if (upper) { v[0] = a; v[1] = b; } else { v[2] = a; v[3] = b; }
}
