// Fused neighborhood attention, forward, 16-bit inputs, on mma.sync, for sm_80 and newer: small windows everywhere, and
// every window where there is no wgmma.
//
// A block walks query boxes of WARPS warps; a warp has one or two fragments of 16 queries, each a compact box. The keys
// that the block's queries see lie in shared memory in key boxes, loaded by cp.async some boxes ahead, across query boxes
// too. From a key box a warp takes chunks that begin where its own windows begin: ldmatrix takes the address of every row,
// so that the keys of a chunk, a box itself, are gathered into one run, and only the last 16 of a run are padded. The
// bits that mask a row are made from a table of each axis: the columns of a chunk that lie before a coordinate.
//
// Additional tokens, which every query sees, come behind the key boxes of a query box, in boxes of their own, whose rows
// are tokens one behind the other: their chunks need no addresses and no mask but at the last token.
//
// In front of this text stand forward_instructions.cu, forward_common.cu and forward_mma_instructions.cu, and in front of
// all:
//   ELEMENT_BF16          1 for bf16, 0 for f16
//   BATCH HEADS HEADS_KV  HEAD_DIM HEAD_DIM_V
//   AXIS0 AXIS1 AXIS2     queries, keys, kind, window, stride, dilation (kinds: Kind)
//   FRAGMENT0 to 2        the box of 16 queries; PAIR0 to 2 fragments of a warp an axis; WARPS0 to 2 warps an axis
//   TILE0 to 2            the query box of a block: their product
//   KEYS0 to 2            the key box; WHOLE0 to 2 1 where it is as long as what a query box sees on that axis
//   CHUNK0 to 2           keys that a warp takes at a time, CHUNK_KEYS = their product up to a multiple of 16, at most 128
//   ONE_CHUNK             1 where one chunk is all that a warp, which has one fragment, sees
//   ADDITIONAL            additional tokens; ADDITIONAL_KEYS of a box, whole chunks of ADDITIONAL_CHUNK
//   STAGES HOLD_QUERIES   key boxes in shared memory; 1 to keep the queries in registers
//   SECTION REVERSE       heads that are walked together; 1 to start from the last query box
//   SCALE                 what scores are multiplied with
//   WRITE_LOGSUMEXP BLOCKS  whether; blocks that share a multiprocessor
//   namespace program, PROGRAM, EXTRA_PARAMETERS, EXTRA_ARGUMENTS   as in forward_sm90.cu

constexpr int FRAGMENTS = PAIR0 * PAIR1 * PAIR2;
constexpr int WARPS = WARPS0 * WARPS1 * WARPS2;
constexpr int THREADS = 32 * WARPS;
constexpr int QUERIES = TILE0 * TILE1 * TILE2;
constexpr int GROUPS = CHUNK_KEYS / 16;
constexpr int STEPS = (HEAD_DIM + 15) / 16, STEPS_V = (HEAD_DIM_V + 15) / 16;
constexpr int BITS = CHUNK_KEYS / 4;

// Pieces of 16 bytes of a row in shared memory: such that eight rows in a run lie in different banks, be it that their
// pieces change places.
constexpr int row_pieces(int steps) { return steps % 2 ? 2 * steps + 1 : 2 * steps; }
constexpr int swizzle(int pieces, int run) { return pieces % 8 == 0 ? run & 7 : pieces % 4 == 0 ? run >> 1 & 3 : 0; }

constexpr int PIECES = row_pieces(STEPS), PIECES_V = row_pieces(STEPS_V);
// Rows of half a bank line change banks by their parity: gathered runs keep it from line to line.
constexpr int LINE = KEYS2 + (PIECES % 8 == 4 ? (KEYS2 ^ CHUNK2) & 1 : 0);
constexpr int BOX_ROWS = KEYS0 * KEYS1 * LINE;
constexpr int ADDITIONAL_BOXES = (ADDITIONAL + ADDITIONAL_KEYS - 1) / ADDITIONAL_KEYS;
// A place in the ring has room for either kind of box.
constexpr int SLOT_ROWS = ADDITIONAL > 0 && ADDITIONAL_KEYS > BOX_ROWS ? ADDITIONAL_KEYS : BOX_ROWS;
constexpr int KEY_BYTES = SLOT_ROWS * PIECES * 16;
constexpr int BOX_BYTES = KEY_BYTES + SLOT_ROWS * PIECES_V * 16;
constexpr int QUERY_BYTES = QUERIES * PIECES * 16;
constexpr int TABLE0 = 0, TABLE1 = TABLE0 + 4 * (CHUNK0 + 1), TABLE2 = TABLE1 + 4 * (CHUNK1 + 1);
constexpr int TABLE = TABLE2 + 4 * (CHUNK2 + 1);

static_assert(FRAGMENT0 * FRAGMENT1 * FRAGMENT2 == 16, "a fragment has 16 rows");
static_assert(ADDITIONAL_CHUNK % 16 == 0 && ADDITIONAL_KEYS % ADDITIONAL_CHUNK == 0, "additional tokens are whole groups");
static_assert(ADDITIONAL == 0 || !ONE_CHUNK, "additional tokens are a chunk too");
static_assert(CHUNK0 * CHUNK1 * CHUNK2 <= CHUNK_KEYS && CHUNK_KEYS % 16 == 0 && CHUNK_KEYS <= 128, "32 mask bits");

// Bytes from a row's start to a lane's part of step k, where `turn` is the lane's half of a step, its place in the
// swizzle applied.
template <int PIECES> __device__ __forceinline__ u32 step_bytes(int k, int turn) {
    constexpr int SPAN = PIECES % 8 == 0 ? 7 : PIECES % 4 == 0 ? 3 : 1;
    return 16 * ((2 * k & ~SPAN) + ((2 * k & SPAN) ^ turn));
}

// Boxes of a query box: those of keys, and behind them those of additional tokens. Queries that see no key at all are
// written too.
__device__ __forceinline__ int key_boxes_of(const Item &item) {
    return max((WHOLE0 ? 1 : item.boxes0) * (WHOLE1 ? 1 : item.boxes1) * (WHOLE2 ? 1 : item.boxes2), 1);
}

__device__ __forceinline__ int boxes_of(const Item &item) { return key_boxes_of(item) + ADDITIONAL_BOXES; }

// n / d without the subroutine of exact division: exact up to n = 2^21, more boxes than a query box has.
__device__ __forceinline__ int quotient(int n, int d) { return (int)((n + 0.5f) * reciprocal((float)d)); }

// Where one of them lies, the last axis counted fastest.
struct Corner {
    int key0, key1, key2;

    __device__ __forceinline__ Corner() : key0(0), key1(0), key2(0) {}

    __device__ __forceinline__ Corner(const Item &item, int box) {
        int at2 = WHOLE2 ? 0 : box, at1 = 0, at0 = 0;
        if (!WHOLE1 || !WHOLE0) {
            int rows = WHOLE2 ? box : quotient(box, max(item.boxes2, 1));
            at2 = WHOLE2 ? 0 : box - rows * max(item.boxes2, 1);
            at0 = WHOLE0 ? 0 : WHOLE1 ? rows : quotient(rows, max(item.boxes1, 1));
            at1 = WHOLE1 ? 0 : rows - at0 * max(item.boxes1, 1);
        }
        key0 = item.key0 + at0 * KEYS0;
        key1 = item.key1 + at1 * KEYS1;
        key2 = item.key2 + at2 * KEYS2;
    }
};

// Whether all rows of a fragment may see all keys of a chunk.
template <class A, int FRAGMENT, int CHUNK> constexpr bool may_be_full() {
    return A::KEYS == 1 || !A::HAS_WINDOW || A::WINDOW - (A::STRIDE == 1 ? FRAGMENT - 1 : 0) >= CHUNK;
}
constexpr bool MAY_BE_FULL = CHUNK0 * CHUNK1 * CHUNK2 == CHUNK_KEYS && may_be_full<A0, FRAGMENT0, CHUNK0>() &&
                             may_be_full<A1, FRAGMENT1, CHUNK1>() && may_be_full<A2, FRAGMENT2, CHUNK2>();

// What is known of a row in shared memory whichever box lies there: how far its vectors lie from those of the box's first
// token, in 16 bytes, its coordinates in the box, and its place in a run. 32 bits span 64 GiB.
struct alignas(16) KeyRow {
    u32 key, value, at, run;
};

// The same of a query: the distance of its logsumexp is in elements.
struct alignas(16) QueryRow {
    u32 query, output, logsumexp, at;
};

struct Rows {
    KeyRow keys[BOX_ROWS];
    QueryRow queries[QUERIES];
};

constexpr u32 NOWHERE = 1023;
__device__ __forceinline__ u32 pack_place(u32 x, u32 y, u32 z) { return x | y << 10 | z << 20; }
__device__ __forceinline__ int place_x(u32 at) { return at & 1023; }
__device__ __forceinline__ int place_y(u32 at) { return at >> 10 & 1023; }
__device__ __forceinline__ int place_z(u32 at) { return at >> 20; }

template <class T> __device__ __forceinline__ u32 distance(const View<T> &view, int x, int y, int z, int unit) {
    i64 elements = x * A0::DILATION * view.stride[1] + y * A1::DILATION * view.stride[2] + z * A2::DILATION * view.stride[3];
    return elements / unit;
}

// The vector of a box's first token, in group coordinates.
template <class T>
__device__ __forceinline__ T *first_of(const View<T> &view, const Item &item, int head, int x, int y, int z) {
    return view.at(item.batch, item.group0 + x * A0::DILATION, item.group1 + y * A1::DILATION,
                   item.group2 + z * A2::DILATION, head);
}

// Where a row of the block's fragments lies in the query box; warps count the last axis fastest, and so do their
// fragments and the rows of these.
struct Place {
    int x, y, z;
    __device__ __forceinline__ Place(int warp, int fragment, int row) {
        x = (warp / (WARPS1 * WARPS2) * PAIR0 + fragment / (PAIR1 * PAIR2)) * FRAGMENT0 + row / (FRAGMENT1 * FRAGMENT2);
        y = (warp / WARPS2 % WARPS1 * PAIR1 + fragment / PAIR2 % PAIR1) * FRAGMENT1 + row / FRAGMENT2 % FRAGMENT1;
        z = (warp % WARPS2 * PAIR2 + fragment % PAIR2) * FRAGMENT2 + row % FRAGMENT2;
    }
};

__device__ __forceinline__ void fill_rows(Rows &rows, const View<const u16> &query, const View<const u16> &key,
                                          const View<const u16> &value, const View<u16> &output,
                                          const View<float> &logsumexp) {
    for (int n = threadIdx.x; n < BOX_ROWS; n += THREADS) {
        int z = n % LINE, y = n / LINE % KEYS1, x = n / LINE / KEYS1;
        u32 at = z < KEYS2 ? pack_place(x, y, z) : pack_place(NOWHERE, NOWHERE, NOWHERE);
        rows.keys[n] = {distance(key, x, y, z, 8), distance(value, x, y, z, 8), at, (u32)(z + CHUNK2 * (y + CHUNK1 * x)) & 7};
    }
    for (int n = threadIdx.x; n < QUERIES; n += THREADS) {
        Place place(n / (16 * FRAGMENTS), n / 16 % FRAGMENTS, n % 16);
        rows.queries[n] = {distance(query, place.x, place.y, place.z, 8), distance(output, place.x, place.y, place.z, 8),
                           distance(logsumexp, place.x, place.y, place.z, 1), pack_place(place.x, place.y, place.z)};
    }
}

// Loads a key box; where it is not WHOLE, zeros are what lies behind the last key.
template <bool WHOLE>
__device__ __forceinline__ void load_rows(u32 to, const Rows &rows, const u16 *key, const u16 *value, int rest0, int rest1,
                                          int rest2) {
    constexpr int COUNT = 2 * (STEPS > STEPS_V ? STEPS : STEPS_V), STRIDE = THREADS / COUNT;
    int thread = anew(threadIdx.x), piece = thread % COUNT;
    key += 8 * piece;
    value += 8 * piece;
#pragma unroll 4
    for (int row = thread / COUNT; row < (thread < STRIDE * COUNT ? BOX_ROWS : 0); row += STRIDE) {
        KeyRow here = rows.keys[row];
        bool inside = WHOLE || (place_x(here.at) < rest0 && place_y(here.at) < rest1 && place_z(here.at) < rest2);
        if (STEPS >= STEPS_V || piece < 2 * STEPS)
            copy(to + (row * PIECES + (piece ^ swizzle(PIECES, here.run))) * 16, key + 8ull * here.key,
                 inside && (HEAD_DIM % 16 == 0 || 8 * piece < HEAD_DIM));
        if (STEPS_V >= STEPS || piece < 2 * STEPS_V)
            copy(to + KEY_BYTES + (row * PIECES_V + (piece ^ swizzle(PIECES_V, here.run))) * 16, value + 8ull * here.value,
                 inside && (HEAD_DIM_V % 16 == 0 || 8 * piece < HEAD_DIM_V));
    }
}

__device__ __forceinline__ void load_keys(u32 to, const Rows &rows, const View<const u16> &key, const View<const u16> &value,
                                          const Item &item, const Corner &corner) {
    int head = item.head / (HEADS / HEADS_KV);
    const u16 *keys = first_of(key, item, head, corner.key0, corner.key1, corner.key2);
    const u16 *values = first_of(value, item, head, corner.key0, corner.key1, corner.key2);
    int rest0 = A0::keys(item.group0) - corner.key0, rest1 = A1::keys(item.group1) - corner.key1,
        rest2 = A2::keys(item.group2) - corner.key2;
    if (LINE == KEYS2 && rest0 >= KEYS0 && rest1 >= KEYS1 && rest2 >= KEYS2)
        load_rows<true>(to, rows, keys, values, rest0, rest1, rest2);
    else
        load_rows<false>(to, rows, keys, values, rest0, rest1, rest2);
}

// Loads box number `box` of additional tokens, whose axes are batch entry, token and head: zeros behind the last one.
__device__ __forceinline__ void load_additional(u32 to, const View<const u16> &key, const View<const u16> &value,
                                                const Item &item, int box) {
    constexpr int COUNT = 2 * (STEPS > STEPS_V ? STEPS : STEPS_V), STRIDE = THREADS / COUNT;
    int thread = anew(threadIdx.x), piece = thread % COUNT, head = item.head / (HEADS / HEADS_KV);
    const u16 *keys = key.data + item.batch * key.stride[0] + head * key.stride[2] + 8 * piece;
    const u16 *values = value.data + item.batch * value.stride[0] + head * value.stride[2] + 8 * piece;
#pragma unroll 1
    for (int row = thread / COUNT; row < (thread < STRIDE * COUNT ? ADDITIONAL_KEYS : 0); row += STRIDE) {
        i64 token = box * ADDITIONAL_KEYS + row;
        bool inside = token < ADDITIONAL;
        if (STEPS >= STEPS_V || piece < 2 * STEPS)
            copy(to + (row * PIECES + (piece ^ swizzle(PIECES, row))) * 16, keys + token * key.stride[1],
                 inside && (HEAD_DIM % 16 == 0 || 8 * piece < HEAD_DIM));
        if (STEPS_V >= STEPS || piece < 2 * STEPS_V)
            copy(to + KEY_BYTES + (row * PIECES_V + (piece ^ swizzle(PIECES_V, row))) * 16, values + token * value.stride[1],
                 inside && (HEAD_DIM_V % 16 == 0 || 8 * piece < HEAD_DIM_V));
    }
}

__device__ __forceinline__ bool is_query(const Item &item, u32 at) {
    return item.query0 + place_x(at) < A0::queries(item.group0) && item.query1 + place_y(at) < A1::queries(item.group1) &&
           item.query2 + place_z(at) < A2::queries(item.group2);
}

__device__ __forceinline__ void load_queries(u32 to, const Rows &rows, const View<const u16> &query, const Item &item) {
    constexpr int COUNT = 2 * STEPS, STRIDE = THREADS / COUNT;
    int thread = anew(threadIdx.x), piece = thread % COUNT;
    const u16 *queries = first_of(query, item, item.head, item.query0, item.query1, item.query2) + 8 * piece;
#pragma unroll 2
    for (int row = thread / COUNT; row < (thread < STRIDE * COUNT ? QUERIES : 0); row += STRIDE) {
        QueryRow here = rows.queries[row];
        copy(to + (row * PIECES + (piece ^ swizzle(PIECES, row))) * 16, queries + 8ull * here.query,
             is_query(item, here.at) && (HEAD_DIM % 16 == 0 || 8 * piece < HEAD_DIM));
    }
}

// Columns of a chunk, by coordinate: bit 2j + e of a thread is column 8j + 2 * (lane % 4) + e. For each axis, coordinate v
// and lane % 4 the bits of the columns that lie before v.
__device__ __forceinline__ void fill_tables(u32 *table) {
    for (int n = threadIdx.x; n < TABLE; n += THREADS) {
        u32 bits = 0;
        for (int i = 0; i < BITS; i++) {
            int column = 8 * (i / 2) + 2 * (n % 4) + i % 2;
            int x = column / (CHUNK1 * CHUNK2), y = column / CHUNK2 % CHUNK1, z = column % CHUNK2;
            int at = n < TABLE1 ? x : n < TABLE2 ? y : z;
            int before = (n - (n < TABLE1 ? TABLE0 : n < TABLE2 ? TABLE1 : TABLE2)) / 4;
            if (column < CHUNK0 * CHUNK1 * CHUNK2 && at < before) bits |= 1u << i;
        }
        table[n] = bits;
    }
}

// The columns of a chunk at `start` whose keys lie from `first` to `end` and before `limit`.
template <class A, int TABLE, int CHUNK>
__device__ __forceinline__ u32 axis_bits(const u32 *table, int first, int end, int limit, int start, int quad) {
    // Said once more, so that no register holds it.
    if (A::IS_CENTRED) end = first + A::WINDOW;
    return table[TABLE + 4 * clip(min(end, limit) - start, CHUNK) + quad] & ~table[TABLE + 4 * clip(first - start, CHUNK) + quad];
}

// A box of keys between two corners.
struct Span {
    int first0, end0, first1, end1, first2, end2;
};

// A warp at work on its queries.
struct Worker {
    const u32 *table;
    const Rows *rows;
    int lane, quad, warp;
    // What the rows of a fragment see, as a product of axes; and what all of them do.
    int first0[FRAGMENTS][2], end0[FRAGMENTS][2], first1[FRAGMENTS][2], end1[FRAGMENTS][2], first2[FRAGMENTS][2],
        end2[FRAGMENTS][2];
    Span all[FRAGMENTS];
    u32 queries[FRAGMENTS][HOLD_QUERIES ? STEPS : 1][4];
    float sums[FRAGMENTS][8 * STEPS_V];
    float highest[FRAGMENTS][2], total[FRAGMENTS][2];

    __device__ __forceinline__ void begin(const Item &item) {
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                u32 at = rows->queries[(warp * FRAGMENTS + f) * 16 + lane / 4 + 8 * r].at;
                Window window(item, item.query0 + place_x(at), item.query1 + place_y(at), item.query2 + place_z(at));
                first0[f][r] = window.first0, end0[f][r] = window.end0;
                first1[f][r] = window.first1, end1[f][r] = window.end1;
                first2[f][r] = window.first2, end2[f][r] = window.end2;
                highest[f][r] = NO_SCORE;
                total[f][r] = 0.0f;
            }
            seen(item, f, all[f]);
            if (!ONE_CHUNK) clear(f);
        }
    }

    // What any row of a fragment sees, and what all do; nothing for a fragment behind the last query.
    __device__ __forceinline__ Span seen(const Item &item, int f, Span &by_all) const {
        Place from(warp, f, 0), to(warp, f, 15);
        int at0 = item.query0 + from.x, at1 = item.query1 + from.y, at2 = item.query2 + from.z;
        Window low(item, at0, at1, at2);
        Window high(item, item.query0 + to.x, item.query1 + to.y, item.query2 + to.z);
        by_all = {high.first0, low.end0, high.first1, low.end1, high.first2, low.end2};
        bool is_there = at0 < A0::queries(item.group0) && at1 < A1::queries(item.group1) && at2 < A2::queries(item.group2);
        return {low.first0, is_there ? high.end0 : low.first0, low.first1, high.end1, low.first2, high.end2};
    }

    __device__ __forceinline__ void clear(int f) {
#pragma unroll
        for (int i = 0; i < 8 * STEPS_V; i++) sums[f][i] = 0.0f;
    }

    __device__ __forceinline__ u32 query_address(u32 shared, int f, int k) const {
        int row = (warp * FRAGMENTS + f) * 16 + lane % 16;
        return shared + row * PIECES * 16 + step_bytes<PIECES>(k, lane / 16 ^ swizzle(PIECES, row));
    }

    __device__ __forceinline__ void hold_queries(u32 shared) {
        if (!HOLD_QUERIES) return;
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
            for (int k = 0; k < STEPS; k++) load_matrices(queries[f][HOLD_QUERIES ? k : 0], query_address(shared, f, k));
    }

    // All chunks of a key box that any query of the warp sees.
    __device__ __forceinline__ void take_box(u32 box, u32 shared_queries, const program::Captures &captures, const Item &item,
                                             const Corner &corner) {
        constexpr int L = FRAGMENTS - 1;
        Span unused, one = seen(item, 0, unused), other = seen(item, L, unused);
        // The second fragment lies behind the first along one axis, and may lie behind the last query.
        if (other.end0 == other.first0) other = one;
        Span part = {max(one.first0, corner.key0), min(other.end0, corner.key0 + KEYS0),
                     max(one.first1, corner.key1), min(other.end1, corner.key1 + KEYS1),
                     max(one.first2, corner.key2), min(other.end2, corner.key2 + KEYS2)};
        int first_of_other = PAIR0 > 1 ? other.first0 - CHUNK0 : PAIR1 > 1 ? other.first1 - CHUNK1 : other.first2 - CHUNK2;
        int end_of_one = PAIR0 > 1 ? one.end0 : PAIR1 > 1 ? one.end1 : one.end2;
        if (ONE_CHUNK) {
            if (part.first0 < part.end0)
                take<0, 1>(box, shared_queries, captures, item, corner, part, part.first0, part.first1, part.first2);
            return;
        }
#pragma unroll 1
        for (int c0 = part.first0; c0 < part.end0; c0 += CHUNK0)
#pragma unroll 1
            for (int c1 = part.first1; c1 < part.end1; c1 += CHUNK1)
#pragma unroll 1
                for (int c2 = part.first2; c2 < part.end2; c2 += CHUNK2) {
                    int here = PAIR0 > 1 ? c0 : PAIR1 > 1 ? c1 : c2;
                    if (FRAGMENTS == 1 || here <= first_of_other)
                        take<0, 1>(box, shared_queries, captures, item, corner, part, c0, c1, c2);
                    else if (here >= end_of_one)
                        take<L, FRAGMENTS>(box, shared_queries, captures, item, corner, part, c0, c1, c2);
                    else
                        take<0, FRAGMENTS>(box, shared_queries, captures, item, corner, part, c0, c1, c2);
                }
    }

    // The first `count` rows of a box of additional tokens.
    __device__ __forceinline__ void take_additional(u32 box, u32 shared_queries, const program::Captures &captures,
                                                    const Item &item, int count) {
        Corner none = {};
        Span part = {0, 1, 0, 1, 0, min(count, ADDITIONAL_KEYS)};
#pragma unroll 1
        for (int start = 0; start < part.end2; start += ADDITIONAL_CHUNK)
            take<0, FRAGMENTS, true>(box, shared_queries, captures, item, none, part, 0, 0, start);
    }

    // A chunk for the fragments from F to G: of a key box, or, OF_ALL, of the rows of a box of additional tokens, as
    // if these were the last axis.
    template <int F, int G, bool OF_ALL = false>
    __device__ __forceinline__ void take(u32 box, u32 shared_queries, const program::Captures &captures, const Item &item,
                                         const Corner &corner, const Span &part, int c0, int c1, int c2) {
        int x = c0 - corner.key0, y = c1 - corner.key1, z = c2 - corner.key2;
        int anchor = (x * KEYS1 + y) * LINE + z;
        int of_row = anew(lane % 16), of_step = anew(lane / 16);
        int run = OF_ALL ? of_row : z + CHUNK2 * (y + CHUNK1 * x) + of_row;
        int turn = of_step ^ swizzle(PIECES, run), turn_v = of_step ^ swizzle(PIECES_V, run);
        constexpr int N = OF_ALL ? ADDITIONAL_CHUNK / 16 : GROUPS;
        u32 rows[N];
#pragma unroll
        for (int g = 0; g < N; g++) {
            int i = 16 * g + of_row;
            int row = (i / (CHUNK1 * CHUNK2) * KEYS1 + i / CHUNK2 % CHUNK1) * LINE + i % CHUNK2;
            // What lies behind the key box is masked, but has to be numbers.
            rows[g] = (OF_ALL ? c2 + i : min(anchor + row, BOX_ROWS - 1)) * 16;
        }

        float scores[FRAGMENTS][8 * N];
#pragma unroll
        for (int f = F; f < G; f++)
#pragma unroll
            for (int i = 0; i < 8 * N; i++) scores[f][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            if (!HOLD_QUERIES)
#pragma unroll
                for (int f = F; f < G; f++) load_matrices(queries[f][0], query_address(shared_queries, f, k));
#pragma unroll
            for (int g = 0; g < N; g++) {
                u32 keys[4];
                load_matrices(keys, box + rows[g] * PIECES + step_bytes<PIECES>(k, turn));
#pragma unroll
                for (int f = F; f < G; f++) {
                    multiply(&scores[f][8 * g], queries[f][HOLD_QUERIES ? k : 0], keys[0], keys[2]);
                    multiply(&scores[f][8 * g + 4], queries[f][HOLD_QUERIES ? k : 0], keys[1], keys[3]);
                }
            }
        }

        if (ONE_CHUNK) clear(0);
        u32 weights[FRAGMENTS][4 * N];
#pragma unroll
        for (int f = F; f < G; f++) {
            transform<OF_ALL>(scores[f], captures, item, f, c0, c1, c2);
            bool is_full = OF_ALL ? c2 + ADDITIONAL_CHUNK <= part.end2 : MAY_BE_FULL && all[f].first0 <= c0 &&
                           c0 + CHUNK0 <= min(all[f].end0, part.end0) && all[f].first1 <= c1 &&
                           c1 + CHUNK1 <= min(all[f].end1, part.end1) && all[f].first2 <= c2 &&
                           c2 + CHUNK2 <= min(all[f].end2, part.end2);
            if (!is_full && OF_ALL) mask_behind(scores[f], part.end2 - c2);
            if (!is_full && !OF_ALL) mask(scores[f], part, f, c0, c1, c2);
            weigh(scores[f], f);
#pragma unroll
            for (int i = 0; i < 4 * N; i++) weights[f][i] = pack(scores[f][2 * i], scores[f][2 * i + 1]);
        }

#pragma unroll
        for (int g = 0; g < N; g++)
#pragma unroll
            for (int n = 0; n < STEPS_V; n++) {
                u32 values[4];
                load_transposed(values, box + KEY_BYTES + rows[g] * PIECES_V + step_bytes<PIECES_V>(n, turn_v));
#pragma unroll
                for (int f = F; f < G; f++) {
                    multiply(&sums[f][8 * n], &weights[f][4 * g], values[0], values[1]);
                    multiply(&sums[f][8 * n + 4], &weights[f][4 * g], values[2], values[3]);
                }
            }
    }

    // Scaled scores where a function takes them, and what it makes of them; additional tokens have none.
    template <bool OF_ALL, int N>
    __device__ __forceinline__ void transform(float (&scores)[N], const program::Captures &captures, const Item &item, int f,
                                              int c0, int c1, int c2) {
        if (!SCALE_FIRST) return;
#pragma unroll
        for (int i = 0; i < N; i++) scores[i] *= SCALE;
        if (OF_ALL) return;
#if PROGRAM
#pragma unroll
        for (int r = 0; r < 2; r++) {
            program::Site at = {};
            at.b = item.batch;
            at.h = item.head;
            at.hkv = item.head / (HEADS / HEADS_KV);
            at.row = item.batch * HEADS + item.head;
            Place place(warp, f, lane / 4 + 8 * r);
            at.qc[0] = item.group0 + (item.query0 + place.x) * A0::DILATION;
            at.qc[1] = item.group1 + (item.query1 + place.y) * A1::DILATION;
            at.qc[2] = item.group2 + (item.query2 + place.z) * A2::DILATION;
            at.q = (at.qc[0] * A1::QUERIES + at.qc[1]) * A2::QUERIES + at.qc[2];
            auto fixed = program::Functions::fix(captures, at);
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                int column = 8 * (i / 2) + 2 * quad + i % 2;
                at.kc[0] = item.group0 + (c0 + column / (CHUNK1 * CHUNK2)) * A0::DILATION;
                at.kc[1] = item.group1 + (c1 + column / CHUNK2 % CHUNK1) * A1::DILATION;
                at.kc[2] = item.group2 + (c2 + column % CHUNK2) * A2::DILATION;
                at.k = (at.kc[0] * A1::KEYS + at.kc[1]) * A2::KEYS + at.kc[2];
                float &score = scores[4 * (i / 2) + 2 * r + i % 2];
                score = program::Functions::score(captures, at, fixed, score);
            }
        }
#endif
    }

    template <int N> __device__ __forceinline__ void mask(float (&scores)[N], const Span &part, int f, int c0, int c1, int c2) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            u32 bits = axis_bits<A2, TABLE2, CHUNK2>(table, first2[f][r], end2[f][r], part.end2, c2, quad);
            if (A1::KEYS > 1) bits &= axis_bits<A1, TABLE1, CHUNK1>(table, first1[f][r], end1[f][r], part.end1, c1, quad);
            if (A0::KEYS > 1) bits &= axis_bits<A0, TABLE0, CHUNK0>(table, first0[f][r], end0[f][r], part.end0, c0, quad);
#pragma unroll
            for (int i = 0; i < N / 2; i++)
                if (!(bits >> i & 1)) scores[4 * (i / 2) + 2 * r + i % 2] = NO_SCORE;
        }
    }

    // Hides the columns from `end` on.
    template <int N> __device__ __forceinline__ void mask_behind(float (&scores)[N], int end) const {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (8 * (i / 4) + 2 * quad + i % 2 >= end) scores[i] = NO_SCORE;
    }

    // Turns scores into weights, and rescales the sums where a maximum grew by much.
    template <int N> __device__ __forceinline__ void weigh(float (&scores)[N], int f) {
        float top[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = highest[f][r];
#pragma unroll
            for (int j = 0; j < N / 4; j++)
                top[r] = fmaxf(top[r], fmaxf(scores[4 * j + 2 * r], scores[4 * j + 2 * r + 1]));
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
        }
        bool grew = (top[0] - highest[f][0]) * EXPONENT > SLACK || (top[1] - highest[f][1]) * EXPONENT > SLACK;
        if (ONE_CHUNK) {
            highest[f][0] = top[0];
            highest[f][1] = top[1];
        } else if (__any_sync(~0u, grew)) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float factor = top[r] == NO_SCORE ? 1.0f : exp2_fast((highest[f][r] - top[r]) * EXPONENT);
                total[f][r] *= factor;
                highest[f][r] = top[r];
#pragma unroll
                for (int j = 0; j < 2 * STEPS_V; j++) {
                    sums[f][4 * j + 2 * r] *= factor;
                    sums[f][4 * j + 2 * r + 1] *= factor;
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float shift = highest[f][r] == NO_SCORE ? 0.0f : highest[f][r] * EXPONENT;
#pragma unroll
            for (int j = 0; j < N / 4; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &s = scores[4 * j + 2 * r + e];
                    s = exp2_fast(s * EXPONENT - shift);
                    total[f][r] += s;
                }
        }
    }

    __device__ __forceinline__ void write(const View<u16> &output, const View<float> &logsumexp, const Item &item) const {
        int row = anew(16 * FRAGMENTS * warp + lane / 4);
        u16 *first = first_of(output, item, item.head, item.query0, item.query1, item.query2);
        float *first_logsumexp = first_of(logsumexp, item, item.head, item.query0, item.query1, item.query2);
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float sum = total[f][r];
                sum += __shfl_xor_sync(~0u, sum, 1);
                sum += __shfl_xor_sync(~0u, sum, 2);
                float inverse = sum > 0.0f ? reciprocal(sum) : 0.0f;
                QueryRow here = rows->queries[row + 16 * f + 8 * r];
                bool inside = is_query(item, here.at);
                if (WRITE_LOGSUMEXP && inside && quad == 0)
                    first_logsumexp[here.logsumexp] =
                        sum > 0.0f ? (highest[f][r] * EXPONENT + log2_fast(sum)) * LOG_2 : NO_SCORE;
                u16 *to = first + 8ull * here.output;
#pragma unroll
                for (int j = 0; j < 2 * STEPS_V; j += 4) {
                    u32 words[4];
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        words[i] = j + i < 2 * STEPS_V ? pack(sums[f][4 * (j + i) % (8 * STEPS_V) + 2 * r] * inverse,
                                                              sums[f][4 * (j + i) % (8 * STEPS_V) + 2 * r + 1] * inverse)
                                                       : 0;
                    transpose_quad(words, quad);
                    int column = 8 * (j + quad);
                    if (inside && column < HEAD_DIM_V)
                        *reinterpret_cast<uint4 *>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
                }
            }
    }
};

#if ADDITIONAL
#define ADDITIONAL_PARAMETERS , const View<const u16> additional_key, const View<const u16> additional_value
#else
#define ADDITIONAL_PARAMETERS
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    forward_mma(const View<const u16> query, const View<const u16> key, const View<const u16> value, const View<u16> output,
                const View<float> logsumexp ADDITIONAL_PARAMETERS EXTRA_PARAMETERS) {
    DYNAMIC_SHARED(unsigned char, memory);
    __shared__ u32 table[TABLE];
    __shared__ Rows rows;
    fill_tables(table);
    fill_rows(rows, query, key, value, output, logsumexp);
    __syncthreads();
    u32 boxes = shared_address(memory), queries = boxes + STAGES * BOX_BYTES;
    program::Captures captures = {EXTRA_ARGUMENTS};
    // What is loaded next: a key box, and with the first one of a query box the queries.
    int ahead = blockIdx.x, ahead_box = 0;
    u32 fill = 0, fill_queries = 0;
    auto load_ahead = [&] {
        if (ahead < ITEMS) {
            Item item(anew(ahead));
            if (ahead_box == 0) {
                load_queries(queries + fill_queries * QUERY_BYTES, rows, query, item);
                fill_queries = fill_queries + 1 == STAGES ? 0 : fill_queries + 1;
            }
            u32 to = boxes + fill * BOX_BYTES;
#if ADDITIONAL
            if (ahead_box >= key_boxes_of(item))
                load_additional(to, additional_key, additional_value, item, ahead_box - key_boxes_of(item));
            else
#endif
                load_keys(to, rows, key, value, item, Corner(item, ahead_box));
            fill = fill + 1 == STAGES ? 0 : fill + 1;
            if (++ahead_box == boxes_of(item)) {
                ahead += gridDim.x;
                ahead_box = 0;
            }
        }
        commit_copies();
    };
    for (int s = 0; s < STAGES - 1; s++) load_ahead();
    Worker worker;
    worker.table = table;
    worker.rows = &rows;
    worker.lane = threadIdx.x % 32;
    worker.quad = threadIdx.x % 4;
    // Told to the compiler as uniform, so that what depends on it is computed once a warp.
    worker.warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    u32 slot = 0, query_slot = 0;
    for (int index = blockIdx.x; index < ITEMS; index += gridDim.x) {
        u32 shared_queries = queries + query_slot * QUERY_BYTES;
        int count = boxes_of(Item(anew(index)));
#pragma unroll 1
        for (int box = 0; box < count; box++) {
            if (STAGES == 1) __syncthreads();
            if (STAGES > 1) wait_copies<(STAGES > 1 ? STAGES - 2 : 0)>();
            if (STAGES > 1) __syncthreads();
            load_ahead();
            Item item(anew(index));
            if (box == 0) worker.begin(item);
            if (STAGES == 1) wait_copies<0>();
            if (STAGES == 1) __syncthreads();
            if (box == 0) worker.hold_queries(shared_queries);
            u32 here = boxes + slot * BOX_BYTES;
            if (ADDITIONAL > 0 && box >= key_boxes_of(item))
                worker.take_additional(here, shared_queries, captures, item,
                                       ADDITIONAL - (box - key_boxes_of(item)) * ADDITIONAL_KEYS);
            else
                worker.take_box(here, shared_queries, captures, item, Corner(item, box));
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
        query_slot = query_slot + 1 == STAGES ? 0 : query_slot + 1;
        worker.write(output, logsumexp, Item(anew(index)));
    }
}
