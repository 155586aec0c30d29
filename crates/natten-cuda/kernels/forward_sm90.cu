// Fused neighborhood attention, forward, 16-bit inputs, for sm_90a: wgmma, TMA, one producer warp, two or three
// consumer warpgroups.
//
// A block walks query boxes of WARPGROUPS sub-boxes of 64 queries, one a warpgroup. The keys that the box's queries see
// are cut into key boxes anchored where the union of the windows starts; the producer loads them, keys and values, into
// a ring that all warpgroups share. A key box inside the intersection of a warpgroup's windows is used without a mask, any
// other gets a bit mask per row. TMA reads the boxes straight from heads-last
// tensors, fills what lies outside with zeros, and writes them in the swizzled layout that wgmma reads.
//
// The scores of the next box are issued before the product of the current weights with their values, so that a
// warpgroup's softmax runs under its own second product; named barriers make warpgroups take turns in issuing, so that
// it also runs under the products of the others.
//
// Printed in front of this text:
//   ELEMENT_BF16          1 for bf16, 0 for f16
//   BATCH HEADS HEADS_KV  HEAD_DIM HEAD_DIM_V
//   AXIS0 AXIS1 AXIS2     queries, keys, kind, window, stride, dilation (kinds: Kind below)
//   SUB0 SUB1 SUB2        the box of 64 queries of a warpgroup; GROUPS0 GROUPS1 GROUPS2 warpgroups an axis
//   KEYS0 KEYS1 KEYS2     the key box, BOX_KEYS = their product; KEYS2 is 4 or a multiple of 8
//   RING QUERY_RING       key boxes in the ring, and query boxes
//   ADDITIONAL            further keys that every query sees
//   CHUNK                 columns of a box, 64, or 32 where no vector is longer
//   FOLD_HEADS            1 where head and column share the innermost axis of the tensor maps
//   SECTION REVERSE       heads that are walked together; 1 to start from the last query box
//   SCALE                 what scores are multiplied with
//   namespace program     Captures, the tensors that functions read; where PROGRAM is 1 also Site, a pair's place, and
//                         Functions, of which score makes a scaled score one that the softmax takes
//   EXTRA_PARAMETERS EXTRA_ARGUMENTS   the members of Captures, as parameters of the kernel and by name
//   BLOCKS                blocks that share a multiprocessor; PRODUCER_REGISTERS CONSUMER_REGISTERS a thread
//   wgmma_scores(float (&)[BOX_KEYS / 2], u64, u64, bool), wgmma_values(float (&)[HEAD_DIM_V / 2], u32 x 4, u64)

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
constexpr int CHUNKS = (HEAD_DIM + CHUNK - 1) / CHUNK;
constexpr int CHUNKS_V = (HEAD_DIM_V + CHUNK - 1) / CHUNK;
constexpr int STEPS = (HEAD_DIM + 15) / 16;
constexpr int QUERY_BYTES = WARPGROUPS * ROWS * CHUNKS * PITCH;
constexpr int KEY_BYTES = BOX_KEYS * CHUNKS * PITCH;
constexpr int VALUE_BYTES = BOX_KEYS * CHUNKS_V * PITCH;
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

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

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

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 both;
#if ELEMENT_BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
    return both;
}

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

struct Maps {
    const TensorMap &query, &key, &value, &additional_key, &additional_value;
};

// Loads a key box of keys or of values, chunk by chunk, into a slot of the ring.
template <int COLUMNS>
__device__ __forceinline__ void load_slot(u32 ring, u32 full, u32 empty, const TensorMap &map, const TensorMap &additional,
                                          const Item &item, const Walk &walk, int box, int window_boxes, Slot slot) {
    constexpr int COUNT = (COLUMNS + CHUNK - 1) / CHUNK;
    barrier_wait(empty, slot.phase ^ 1);
    barrier_expect(full, COUNT * BOX_KEYS * PITCH);
    int head = item.head / (HEADS / HEADS_KV);
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        u32 to = ring + (slot.index * COUNT + c) * BOX_KEYS * PITCH;
        if (ADDITIONAL > 0 && box >= window_boxes) {
            load_box(to, additional, full, head, COLUMNS, c * CHUNK, 0, 0, (box - window_boxes) * BOX_KEYS, item.batch);
            continue;
        }
#pragma unroll
        for (int part = 0; part < KEY_PARTS; part++)
            load_box(to + part * (BOX_KEYS / KEY_PARTS) * PITCH, map, full, head, COLUMNS, c * CHUNK,
                     item.group0 + walk.key0 * A0::DILATION, item.group1 + walk.key1 * A1::DILATION,
                     item.group2 + (walk.key2 + part * (KEYS2 / KEY_PARTS)) * A2::DILATION, item.batch);
    }
}

__device__ __forceinline__ void load_keys(const Shared &shared, const Maps &maps, const Item &item, const Walk &walk,
                                          int box, int window_boxes, Slot slot) {
    load_slot<HEAD_DIM>(shared.key, shared.key_full(slot.index), shared.key_empty(slot.index), maps.key,
                        maps.additional_key, item, walk, box, window_boxes, slot);
}

__device__ __forceinline__ void load_values(const Shared &shared, const Maps &maps, const Item &item, const Walk &walk,
                                            int box, int window_boxes, Slot slot) {
    load_slot<HEAD_DIM_V>(shared.value, shared.value_full(slot.index), shared.value_empty(slot.index), maps.value,
                          maps.additional_value, item, walk, box, window_boxes, slot);
}

// The one thread that feeds the ring: the keys of the next box go before the values of this one, as they are used.
__device__ __forceinline__ void produce(const Shared &shared, const Maps &maps) {
    Slot slot = {0, 0};
    Place<QUERY_RING> query_slot = {0, 0};
    for (int round = 0; round * gridDim.x < ITEMS; round++) {
        int index = item_of(round);
        if (index >= ITEMS) continue;
        Item item(index);
        int window_boxes = item.window_boxes();
        int boxes = window_boxes + ADDITIONAL_BOXES;
        barrier_wait(shared.query_empty(query_slot.index), query_slot.phase ^ 1);
        u32 query_full = shared.query_full(query_slot.index);
        u32 query = shared.query + query_slot.index * QUERY_BYTES;
        query_slot.next();
        barrier_expect(query_full, QUERY_BYTES);
#pragma unroll
        for (int w = 0; w < WARPGROUPS; w++) {
            int x = item.query0 + w / (GROUPS1 * GROUPS2) * SUB0;
            int y = item.query1 + w / GROUPS2 % GROUPS1 * SUB1;
            int z = item.query2 + w % GROUPS2 * SUB2;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                for (int part = 0; part < QUERY_PARTS; part++)
                    load_box(query + (w * CHUNKS + c) * ROWS * PITCH + part * (ROWS / QUERY_PARTS) * PITCH, maps.query,
                             query_full, item.head, HEAD_DIM, c * CHUNK, item.group0 + x * A0::DILATION,
                             item.group1 + y * A1::DILATION,
                             item.group2 + (z + part * (SUB2 / QUERY_PARTS)) * A2::DILATION, item.batch);
        }
        if (boxes == 0) continue;
        Walk walk(item);
        load_keys(shared, maps, item, walk, 0, window_boxes, slot);
        for (int box = 0; box < boxes; box++) {
            Walk here = walk;
            Slot now = slot;
            slot.next();
            walk.next(item);
            if (box + 1 < boxes) load_keys(shared, maps, item, walk, box + 1, window_boxes, slot);
            load_values(shared, maps, item, here, box, window_boxes, now);
        }
    }
}

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

// Four values of a quad's four threads change places: thread t ends up with number t of each, in order.
__device__ __forceinline__ void transpose_quad(u32 (&v)[4], int quad) {
    bool odd = quad & 1, upper = quad & 2;
    u32 a = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 1), b = __shfl_xor_sync(~0u, odd ? v[2] : v[3], 1);
    if (odd) { v[0] = a; v[2] = b; } else { v[1] = a; v[3] = b; }
    a = __shfl_xor_sync(~0u, upper ? v[0] : v[2], 2), b = __shfl_xor_sync(~0u, upper ? v[1] : v[3], 2);
    if (upper) { v[0] = a; v[1] = b; } else { v[2] = a; v[3] = b; }
}

constexpr int SCORES = BOX_KEYS / 2;
constexpr int SUMS = HEAD_DIM_V / 2;

__device__ __forceinline__ void issue_scores(float (&scores)[SCORES], u32 query, u32 key) {
    // Steps of 16 columns in a chunk.
    constexpr int SPAN = CHUNK / 16;
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < STEPS; k++)
        wgmma_scores(scores, descriptor(query + k / SPAN * ROWS * PITCH + k % SPAN * 32, 16),
                     descriptor(key + k / SPAN * BOX_KEYS * PITCH + k % SPAN * 32, 16), k > 0);
    wgmma_commit();
}

__device__ __forceinline__ void issue_values(float (&sums)[SUMS], u32 (&weights)[BITS], u32 value) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < BOX_KEYS / 16; k++)
        wgmma_values(sums, weights[4 * k], weights[4 * k + 1], weights[4 * k + 2], weights[4 * k + 3],
                     descriptor(value + k * 16 * PITCH, BOX_KEYS * PITCH));
    wgmma_commit();
}

// The running maximum and sum of a thread's two rows, which lie eight apart.
struct Rows {
    float highest[2], total[2], factor[2];

    // Turns scores into weights; true if the sums over values have to be scaled by `factor` first.
    __device__ __forceinline__ bool weigh(float (&scores)[SCORES]) {
        float top[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(scores[2 * r], scores[2 * r + 1]);
#pragma unroll
            for (int j = 1; j < BOX_KEYS / 8; j++)
                top[r] = fmaxf(top[r], fmaxf(scores[4 * j + 2 * r], scores[4 * j + 2 * r + 1]));
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
            top[r] = fmaxf(top[r], highest[r]);
        }
        bool grew = (top[0] - highest[0]) * EXPONENT > SLACK || (top[1] - highest[1]) * EXPONENT > SLACK;
        bool rescale = __any_sync(~0u, grew);
        if (rescale) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                factor[r] = top[r] == NO_SCORE ? 1.0f : exp2_fast((highest[r] - top[r]) * EXPONENT);
                total[r] *= factor[r];
                highest[r] = top[r];
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float shift = highest[r] == NO_SCORE ? 0.0f : highest[r] * EXPONENT;
#pragma unroll
            for (int j = 0; j < BOX_KEYS / 8; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &s = scores[4 * j + 2 * r + e];
                    s = exp2_fast(s * EXPONENT - shift);
                    total[r] += s;
                }
            }
        }
        return rescale;
    }
};

__device__ __forceinline__ void mask(float (&scores)[SCORES], const Window (&windows)[2], const Walk &walk, int quad) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        Bits bits = box_bits(windows[r].first0 - walk.key0, windows[r].end0 - walk.key0, windows[r].first1 - walk.key1,
                             windows[r].end1 - walk.key1, windows[r].first2 - walk.key2, windows[r].end2 - walk.key2, quad);
#pragma unroll
        for (int i = 0; i < BITS; i++)
            if (!(bits >> i & 1)) scores[4 * (i / 2) + 2 * r + i % 2] = NO_SCORE;
    }
}

#if PROGRAM
// The place of a thread's element of a key box, as tokens.
__device__ __forceinline__ void key_tokens(const Item &item, const Walk &walk, int i, int quad, int (&token)[3]) {
    int column = 8 * (i / 2) + i % 2;
    int x = column / (KEYS1 * KEYS2), y = column / KEYS2 % KEYS1, z = column % KEYS2;
    if (KEYS2 >= 8) {
        z += 2 * quad;
    } else {
        z += 2 * (quad & 1);
        y += quad >> 1;
    }
    token[0] = item.group0 + (walk.key0 + x) * A0::DILATION;
    token[1] = item.group1 + (walk.key1 + y) * A1::DILATION;
    token[2] = item.group2 + (walk.key2 + z) * A2::DILATION;
}

// Scaled scores become those that the softmax takes.
__device__ __forceinline__ void transform(float (&scores)[SCORES], const program::Captures &captures, const Item &item,
                                          const Walk &walk, const int (&at0)[2], const int (&at1)[2], const int (&at2)[2],
                                          int quad) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        program::Site at = {};
        at.b = item.batch;
        at.h = item.head;
        at.hkv = item.head / (HEADS / HEADS_KV);
        at.row = item.batch * HEADS + item.head;
        at.qc[0] = item.group0 + at0[r] * A0::DILATION;
        at.qc[1] = item.group1 + at1[r] * A1::DILATION;
        at.qc[2] = item.group2 + at2[r] * A2::DILATION;
        at.q = (at.qc[0] * A1::QUERIES + at.qc[1]) * A2::QUERIES + at.qc[2];
        auto fixed = program::Functions::fix(captures, at);
#pragma unroll
        for (int i = 0; i < BITS; i++) {
            float &score = scores[4 * (i / 2) + 2 * r + i % 2];
            key_tokens(item, walk, i, quad, at.kc);
            at.k = (at.kc[0] * A1::KEYS + at.kc[1]) * A2::KEYS + at.kc[2];
            score = program::Functions::score(captures, at, fixed, score);
        }
    }
}
#endif

__device__ __forceinline__ void mask_additional(float (&scores)[SCORES], int keys, int quad) {
    if (keys >= BOX_KEYS) return;
    Bits bits = bits_below(columns_before<BOX_KEYS>(keys, quad));
#pragma unroll
    for (int i = 0; i < BITS; i++)
        if (!(bits >> i & 1)) scores[4 * (i / 2) + i % 2] = scores[4 * (i / 2) + 2 + i % 2] = NO_SCORE;
}

__device__ __forceinline__ void take_turn(int warpgroup) {
#if PING_PONG
    asm volatile("bar.sync %0, 256;" ::"r"(1 + warpgroup) : "memory");
#endif
}

__device__ __forceinline__ void pass_turn(int warpgroup) {
#if PING_PONG
    asm volatile("bar.arrive %0, 256;" ::"r"(1 + (warpgroup + 1) % WARPGROUPS) : "memory");
#endif
}

__device__ __forceinline__ void consume(const Shared &shared, const View<u16> &output, const View<float> &logsumexp,
                                        const program::Captures &captures) {
    // Told to the compiler as uniform, so that what depends on it is computed once a warp.
    int warpgroup = __shfl_sync(~0u, threadIdx.x / 128 - 1, 0);
    int lane = threadIdx.x % 32, quad = lane % 4;
    int row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    int sub0 = warpgroup / (GROUPS1 * GROUPS2) * SUB0;
    int sub1 = warpgroup / GROUPS2 % GROUPS1 * SUB1;
    int sub2 = warpgroup % GROUPS2 * SUB2;
    Slot slot = {0, 0};
    Place<QUERY_RING> query_slot = {0, 0};
    if (warpgroup == WARPGROUPS - 1) pass_turn(warpgroup);
    for (int round = 0; round * gridDim.x < ITEMS; round++) {
        int index = item_of(round);
        if (index >= ITEMS) continue;
        Item item(index);
        int window_boxes = item.window_boxes();
        int boxes = window_boxes + ADDITIONAL_BOXES;
        int first0 = item.query0 + sub0, first1 = item.query1 + sub1, first2 = item.query2 + sub2;
        int at0[2], at1[2], at2[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int here = row + 8 * r;
            at0[r] = first0 + here / (SUB1 * SUB2);
            at1[r] = first1 + here / SUB2 % SUB1;
            at2[r] = first2 + here % SUB2;
        }
        Window windows[2] = {Window(item, at0[0], at1[0], at2[0]), Window(item, at0[1], at1[1], at2[1])};
        Window low(item, first0, first1, first2);
        Window high(item, first0 + SUB0 - 1, first1 + SUB1 - 1, first2 + SUB2 - 1);
        Rows rows = {{NO_SCORE, NO_SCORE}, {0.0f, 0.0f}, {1.0f, 1.0f}};
        float sums[SUMS];
#pragma unroll
        for (int i = 0; i < SUMS; i++) sums[i] = 0.0f;

        u32 query = shared.query + query_slot.index * QUERY_BYTES + warpgroup * CHUNKS * ROWS * PITCH;
        u32 query_empty = shared.query_empty(query_slot.index);
        barrier_wait(shared.query_full(query_slot.index), query_slot.phase);
        query_slot.next();
        Walk walk(item);
        float scores[SCORES];
        u32 weights[BITS];
        int box = 0;
        auto advance = [&]() {
            slot.next();
            walk.next(item);
            box++;
        };
        auto hide = [&]() {
            if (SCALE_FIRST) {
#pragma unroll
                for (int i = 0; i < SCORES; i++) scores[i] *= SCALE;
            }
#if PROGRAM
            if (ADDITIONAL == 0 || box < window_boxes) transform(scores, captures, item, walk, at0, at1, at2, quad);
#endif
            if (ADDITIONAL > 0 && box >= window_boxes)
                mask_additional(scores, ADDITIONAL - (box - window_boxes) * BOX_KEYS, quad);
            else if (!sees_all(low, high, walk))
                mask(scores, windows, walk, quad);
        };
        auto rescale = [&]() {
#pragma unroll
            for (int i = 0; i < SUMS; i++) sums[i] *= rows.factor[i / 2 % 2];
        };
        auto convert = [&]() {
#pragma unroll
            for (int i = 0; i < BITS; i++) weights[i] = pack(scores[2 * i], scores[2 * i + 1]);
        };
        if (boxes == 0 && lane == 0) barrier_arrive(query_empty);
        if (boxes > 0) {
            barrier_wait(shared.key_full(slot.index), slot.phase);
            take_turn(warpgroup);
            issue_scores(scores, query, shared.key + slot.index * KEY_BYTES);
            pass_turn(warpgroup);
            wgmma_wait<0>();
            hold(scores);
            if (lane == 0) barrier_arrive(shared.key_empty(slot.index));
            hide();
            rows.weigh(scores);
            convert();
            Slot pending = slot;
            advance();
            while (box < boxes) {
                barrier_wait(shared.key_full(slot.index), slot.phase);
                take_turn(warpgroup);
                issue_scores(scores, query, shared.key + slot.index * KEY_BYTES);
                barrier_wait(shared.value_full(pending.index), pending.phase);
                issue_values(sums, weights, shared.value + pending.index * VALUE_BYTES);
                pass_turn(warpgroup);
                wgmma_wait<1>();
                hold(scores);
                if (lane == 0) barrier_arrive(shared.key_empty(slot.index));
                hide();
                bool grew = rows.weigh(scores);
                wgmma_wait<0>();
                hold(sums);
                if (lane == 0) barrier_arrive(shared.value_empty(pending.index));
                if (grew) rescale();
                convert();
                pending = slot;
                advance();
            }
            if (lane == 0) barrier_arrive(query_empty);
            barrier_wait(shared.value_full(pending.index), pending.phase);
            issue_values(sums, weights, shared.value + pending.index * VALUE_BYTES);
            wgmma_wait<0>();
            hold(sums);
            if (lane == 0) barrier_arrive(shared.value_empty(pending.index));
        }

#pragma unroll
        for (int r = 0; r < 2; r++) {
            float total = rows.total[r];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            float inverse = total > 0.0f ? reciprocal(total) : 0.0f;
            bool inside = at0[r] < A0::queries(item.group0) && at1[r] < A1::queries(item.group1) &&
                          at2[r] < A2::queries(item.group2);
            int token0 = item.group0 + at0[r] * A0::DILATION, token1 = item.group1 + at1[r] * A1::DILATION,
                token2 = item.group2 + at2[r] * A2::DILATION;
            if (WRITE_LOGSUMEXP && inside && quad == 0)
                *logsumexp.at(item.batch, token0, token1, token2, item.head) =
                    total > 0.0f ? (rows.highest[r] * EXPONENT + log2_fast(total)) * LOG_2 : NO_SCORE;
            u16 *to = output.at(item.batch, token0, token1, token2, item.head);
#pragma unroll
            for (int j = 0; j < HEAD_DIM_V / 8; j += 4) {
                u32 words[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    words[i] = 4 * (j + i) < SUMS ? pack(sums[4 * (j + i) % SUMS + 2 * r] * inverse, sums[4 * (j + i) % SUMS + 2 * r + 1] * inverse) : 0;
                transpose_quad(words, quad);
                int column = 8 * (j + quad);
                if (inside && column < HEAD_DIM_V)
                    *reinterpret_cast<uint4 *>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    forward_sm90(const __grid_constant__ TensorMap query, const __grid_constant__ TensorMap key,
                 const __grid_constant__ TensorMap value, const __grid_constant__ TensorMap additional_key,
                 const __grid_constant__ TensorMap additional_value, const View<u16> output, const View<float> logsumexp
                 EXTRA_PARAMETERS) {
    extern __shared__ __align__(1024) unsigned char memory[];
    u32 base = (shared_address(memory) + 1023) & ~1023u;
    Shared shared;
    shared.query = base;
    shared.key = base + QUERY_RING * QUERY_BYTES;
    shared.value = shared.key + RING * KEY_BYTES;
    shared.barriers = shared.value + RING * VALUE_BYTES;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < QUERY_RING; s++) {
            barrier_init(shared.query_full(s), 1);
            barrier_init(shared.query_empty(s), 4 * WARPGROUPS);
        }
        for (u32 s = 0; s < RING; s++) {
            barrier_init(shared.key_full(s), 1);
            barrier_init(shared.key_empty(s), 4 * WARPGROUPS);
            barrier_init(shared.value_full(s), 1);
            barrier_init(shared.value_empty(s), 4 * WARPGROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
        if (threadIdx.x == 0) produce(shared, Maps{query, key, value, additional_key, additional_value});
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
        consume(shared, output, logsumexp, program::Captures{EXTRA_ARGUMENTS});
    }
}
