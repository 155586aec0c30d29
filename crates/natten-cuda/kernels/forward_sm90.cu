// Fused neighborhood attention, forward, 16-bit inputs, for sm_90a: wgmma, TMA, one producer warp, two or three
// consumer warpgroups.
//
// A block walks query boxes of WARPGROUPS sub-boxes of 64 queries, one a warpgroup. The keys that the box's queries see
// are cut into key boxes anchored where the union of the windows starts; the producer loads them, keys and values, into
// a ring that all warpgroups share. A key box inside the intersection of a warpgroup's windows is used without a mask, any
// other gets a bit mask per row. TMA reads the boxes straight from heads-last tensors, fills what lies outside with zeros,
// and writes them in the swizzled layout that wgmma reads.
//
// The scores of the next box are issued before the product of the current weights with their values, so that a
// warpgroup's softmax runs under its own second product; named barriers make warpgroups take turns in issuing, so that
// it also runs under the products of the others.
//
// With PLANES above 1 an operand is a sum of planes of bf16, which forward_split.cu made of f32: the largest parts first,
// a row's planes one behind the other as columns. Of the products of planes those count whose numbers add up to less
// than PLANES; the weights are split in registers. The output is f32 then, of any layout.
//
// In front of this text stand forward_instructions.cu, forward_common.cu, forward_sm90_boxes.cu and
// forward_sm90_instructions.cu, and in front of all:
//   ELEMENT_BF16          1 for bf16, 0 for f16
//   PLANES                1, or how many an operand is split into
//   PROMOTE               1 to add each box's values to the sums in f32: wgmma cuts off what its own sums cannot hold
//   BATCH HEADS HEADS_KV  HEAD_DIM HEAD_DIM_V
//   AXIS0 AXIS1 AXIS2     queries, keys, kind, window, stride, dilation (kinds: Kind)
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

struct Maps {
    const TensorMap &query, &key, &value, &additional_key, &additional_value;
};

// Loads a key box of keys or of values, chunk by chunk, into a slot of the ring.
template <int WIDTH>
__device__ __forceinline__ void load_slot(u32 ring, u32 full, u32 empty, const TensorMap &map, const TensorMap &additional,
                                          const Item &item, const Walk &walk, int box, int window_boxes, Slot slot) {
    constexpr int COUNT = (WIDTH + CHUNK - 1) / CHUNK;
    barrier_wait(empty, slot.phase ^ 1);
    barrier_expect(full, COUNT * BOX_KEYS * PITCH);
    int head = item.head / (HEADS / HEADS_KV);
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        u32 to = ring + (slot.index * COUNT + c) * BOX_KEYS * PITCH;
        if (ADDITIONAL > 0 && box >= window_boxes) {
            load_box(to, additional, full, head, WIDTH, c * CHUNK, 0, 0, (box - window_boxes) * BOX_KEYS, item.batch);
            continue;
        }
#pragma unroll
        for (int part = 0; part < KEY_PARTS; part++)
            load_box(to + part * (BOX_KEYS / KEY_PARTS) * PITCH, map, full, head, WIDTH, c * CHUNK,
                     item.group0 + walk.key0 * A0::DILATION, item.group1 + walk.key1 * A1::DILATION,
                     item.group2 + (walk.key2 + part * (KEYS2 / KEY_PARTS)) * A2::DILATION, item.batch);
    }
}

__device__ __forceinline__ void load_keys(const Shared &shared, const Maps &maps, const Item &item, const Walk &walk,
                                          int box, int window_boxes, Slot slot) {
    load_slot<COLUMNS>(shared.key, shared.key_full(slot.index), shared.key_empty(slot.index), maps.key,
                        maps.additional_key, item, walk, box, window_boxes, slot);
}

__device__ __forceinline__ void load_values(const Shared &shared, const Maps &maps, const Item &item, const Walk &walk,
                                            int box, int window_boxes, Slot slot) {
    load_slot<COLUMNS_V>(shared.value, shared.value_full(slot.index), shared.value_empty(slot.index), maps.value,
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
            for (int c = 0; c < PLANES * CHUNKS; c++)
#pragma unroll
                for (int part = 0; part < QUERY_PARTS; part++)
                    load_box(query + (w * PLANES * CHUNKS + c) * ROWS * PITCH + part * (ROWS / QUERY_PARTS) * PITCH,
                             maps.query, query_full, item.head, COLUMNS, c * CHUNK, item.group0 + x * A0::DILATION,
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

constexpr int SCORES = BOX_KEYS / 2;
constexpr int SUMS = HEAD_DIM_V / 2;

__device__ __forceinline__ void issue_scores(float (&scores)[SCORES], u32 query, u32 key) {
    // Steps of 16 columns in a chunk.
    constexpr int SPAN = CHUNK / 16;
    // Not known to stay the same: else each of many descriptors keeps a register all along.
    if (PLANES > 1) asm volatile("" : "+r"(query));
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < PLANES; i++)
#pragma unroll
        for (int j = 0; j < PLANES - i; j++)
#pragma unroll
            for (int k = 0; k < STEPS; k++)
                wgmma_scores(scores, descriptor(query + (i * CHUNKS + k / SPAN) * ROWS * PITCH + k % SPAN * 32, 16),
                             descriptor(key + (j * CHUNKS + k / SPAN) * BOX_KEYS * PITCH + k % SPAN * 32, 16),
                             i + j + k > 0);
    wgmma_commit();
}

__device__ __forceinline__ void issue_values(float (&products)[SUMS], u32 (&weights)[PLANES * BITS], u32 value) {
    if constexpr (PROMOTE) {
#pragma unroll
        for (int i = 0; i < SUMS; i++) products[i] = 0.0f;
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < PLANES; i++)
#pragma unroll
        for (int j = 0; j < PLANES - i; j++)
#pragma unroll
            for (int k = 0; k < BOX_KEYS / 16; k++) {
                u32 *four = weights + i * BITS + 4 * k;
                wgmma_values(products, four[0], four[1], four[2], four[3],
                             descriptor(value + (j * CHUNKS_V * BOX_KEYS + k * 16) * PITCH, BOX_KEYS * PITCH));
            }
    wgmma_commit();
}

// Rounds weights to the operand's type, and what that leaves of them to the next plane's.
__device__ __forceinline__ void round_weights(float (&scores)[SCORES], u32 (&weights)[PLANES * BITS]) {
#pragma unroll
    for (int i = 0; i < BITS; i++) {
        weights[i] = pack(scores[2 * i], scores[2 * i + 1]);
#pragma unroll
        for (int plane = 1; plane < PLANES; plane++) {
            u32 before = weights[(plane - 1) * BITS + i];
            scores[2 * i] -= __uint_as_float(before << 16);
            scores[2 * i + 1] -= __uint_as_float(before & 0xFFFF0000u);
            weights[plane * BITS + i] = pack(scores[2 * i], scores[2 * i + 1]);
        }
    }
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

#if PLANES > 1
typedef float Result;

// Writes what a thread has of a row of the output: its sums from `first` on.
__device__ __forceinline__ void write_row(float *to, i64 stride, const float (&sums)[SUMS], int first, float inverse,
                                          int quad, bool inside) {
    if (!inside) return;
#pragma unroll
    for (int j = 0; j < HEAD_DIM_V / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) to[(8 * j + 2 * quad + e) * stride] = sums[4 * j + first + e] * inverse;
}
#else
typedef u16 Result;

// Writes what a quad has of a row of the output: the sums of its threads from `first` on, 16 bytes at a time.
__device__ __forceinline__ void write_row(u16 *to, i64, const float (&sums)[SUMS], int first, float inverse, int quad,
                                          bool inside) {
#pragma unroll
    for (int j = 0; j < HEAD_DIM_V / 8; j += 4) {
        u32 words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = 4 * (j + i) % SUMS + first;
            words[i] = 4 * (j + i) < SUMS ? pack(sums[at] * inverse, sums[at + 1] * inverse) : 0;
        }
        transpose_quad(words, quad);
        int column = 8 * (j + quad);
        if (inside && column < HEAD_DIM_V)
            *reinterpret_cast<uint4 *>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}
#endif

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

__device__ __forceinline__ void consume(const Shared &shared, const View<Result> &output, const View<float> &logsumexp,
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
#if PROMOTE
        float products[SUMS];
#else
        float (&products)[SUMS] = sums;
#endif

        u32 query = shared.query + query_slot.index * QUERY_BYTES + warpgroup * PLANES * CHUNKS * ROWS * PITCH;
        u32 query_empty = shared.query_empty(query_slot.index);
        barrier_wait(shared.query_full(query_slot.index), query_slot.phase);
        query_slot.next();
        Walk walk(item);
        float scores[SCORES];
        u32 weights[PLANES * BITS];
        int box = 0;
        bool whole = true, ended = false;
        // Says whether there is a box, and whether it needs no mask.
        auto look = [&]() {
            if (box >= boxes) return false;
            whole = (ADDITIONAL > 0 && box >= window_boxes) || sees_all(low, high, walk);
            return true;
        };
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
            else if (!whole)
                mask(scores, windows, walk, quad);
        };
        auto collect = [&]() {
            if constexpr (PROMOTE) {
#pragma unroll
                for (int i = 0; i < SUMS; i++) sums[i] += products[i];
            }
        };
        auto rescale = [&]() {
#pragma unroll
            for (int i = 0; i < SUMS; i++) sums[i] *= rows.factor[i / 2 % 2];
        };
        // The outer loop runs once. As a condition it costs 5 to 8 % of all rates: the compiler then lets less of a softmax
        // run under the products.
        while (box < boxes) {
            look();
            barrier_wait(shared.key_full(slot.index), slot.phase);
            take_turn(warpgroup);
            issue_scores(scores, query, shared.key + slot.index * KEY_BYTES);
            pass_turn(warpgroup);
            wgmma_wait<0>();
            hold(scores);
            if (lane == 0) barrier_arrive(shared.key_empty(slot.index));
            hide();
            if (rows.weigh(scores)) rescale();
            round_weights(scores, weights);
            Slot pending = slot;
            advance();
            while (look()) {
                barrier_wait(shared.key_full(slot.index), slot.phase);
                take_turn(warpgroup);
                issue_scores(scores, query, shared.key + slot.index * KEY_BYTES);
                barrier_wait(shared.value_full(pending.index), pending.phase);
                issue_values(products, weights, shared.value + pending.index * VALUE_BYTES);
                pass_turn(warpgroup);
                wgmma_wait<1>();
                hold(scores);
                if (lane == 0) barrier_arrive(shared.key_empty(slot.index));
                hide();
                bool grew = rows.weigh(scores);
                wgmma_wait<0>();
                hold(products);
                if (lane == 0) barrier_arrive(shared.value_empty(pending.index));
                collect();
                if (grew) rescale();
                round_weights(scores, weights);
                pending = slot;
                advance();
            }
            if (box == boxes && lane == 0) barrier_arrive(query_empty);
            barrier_wait(shared.value_full(pending.index), pending.phase);
            issue_values(products, weights, shared.value + pending.index * VALUE_BYTES);
            wgmma_wait<0>();
            hold(products);
            if (lane == 0) barrier_arrive(shared.value_empty(pending.index));
            collect();
            ended = box == boxes;
        }
        if (!ended && lane == 0) barrier_arrive(query_empty);

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
            Result *to = output.at(item.batch, token0, token1, token2, item.head);
            write_row(to, output.stride[5], sums, 2 * r, inverse, quad, inside);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    forward_sm90(const __grid_constant__ TensorMap query, const __grid_constant__ TensorMap key,
                 const __grid_constant__ TensorMap value, const __grid_constant__ TensorMap additional_key,
                 const __grid_constant__ TensorMap additional_value, const View<Result> output,
                 const View<float> logsumexp
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
