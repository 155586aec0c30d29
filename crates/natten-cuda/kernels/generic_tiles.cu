// The forward pass on tiles, for rows that need one sweep and no additional tokens: a block takes a box of BQ queries of
// one residue group and walks the union of their windows in tiles of BK keys, through shared memory. Scores and output
// are register tiles: a thread has ROWS queries, COLUMNS keys of each tile, and OF_THREAD elements of each output.
//
// With DMMA 1 the products run on the f64 tensor cores, a warp has 16 queries, and weights stay in the registers in which
// their scores were: what a product sums over may be in any order that both operands have. The next tile is copied while
// one is multiplied. Otherwise a thread has four queries and every TX-th key, and weights go through shared memory.
//
// A pair that does not count has the weight -0, one that counts never has: where a value is not finite, those are told
// apart and left out; elsewhere their product is zero.

// Elements of 16 bytes.
#define WIDE (16 / (int)sizeof(R))
#if DMMA
#define THREADS (BQ * 2)
#define ROWS 2
#define COLUMNS (BK / 4)
#define OF_THREAD (DIM_V / 4)
// Threads of a row.
#define TX 4
#define ROW(i) (warp * 16 + lane / 4 + 8 * (i))
#define COLUMN(j) ((j) / 2 * 8 + lane % 4 * 2 + (j) % 2)
#define ELEMENT(e) ((e) / 2 * 8 + lane % 4 * 2 + (e) % 2)
// Eight threads read 16 bytes each at once, four of each of two rows of queries and keys; sixteen read 8 bytes each, four of
// every second of eight rows of values. So far apart they begin in different banks.
#define LINE (DIM + 8)
#define LINE_V (DIM_V + 2)
// Whether a warp's queries stay in registers, where they leave room for its output.
#define HELD (DIM <= 64 && DIM_V <= 64)
// Tiles whose keys are known at a time: that which slow warps are at, the next, and the one that is copied.
#define PLACES 3
#else
#define PLACES 1
#define ROWS 4
#define COLUMNS 4
#define TX (BK / 4)
#define THREADS (TX * (BQ / 4))
#define OF_THREAD ((DIM_V + TX * WIDE - 1) / (TX * WIDE) * WIDE)
#define ROW(i) (ty * 4 + (i))
#define COLUMN(j) (tx + TX * (j))
#define ELEMENT(e) ((tx + TX * ((e) / WIDE)) * WIDE + (e) % WIDE)
// Neighbouring rows begin in different banks.
#define LINE (DIM + WIDE)
#define LINE_V (DIM_V + WIDE)
#define LINE_P (BK + WIDE)
#endif

// How the queries fall into boxes: the box, and boxes of a residue group of each axis.
struct Boxes { int box[3], count[3]; };

struct alignas(16) Wide { R number[WIDE]; };

// Whether every query of the box sees every key of the tile, known to the compiler.
template <bool VALUE> struct Whole { static constexpr bool value = VALUE; };

// What a block works on.
struct Here {
    int b, h;
    int group[3], first[3];
};

// The positions of a query of the box; whether it is one.
DEVICE bool position_of(const Sizes& z, const Boxes& boxes, const Here& here, int row, int position[3]) {
    int rest = row;
    bool inside = true;
#pragma unroll
    for (int a = 2; a >= 0; --a) {
        position[a] = here.first[a] + rest % boxes.box[a];
        rest /= boxes.box[a];
        inside = inside && position[a] < group_len(z.axes[a].queries, z.axes[a].dilation, here.group[a]);
    }
    return inside && rest == 0;
}

// Copies vectors into a tile, zeros behind them and where there is none. Returns whether all numbers are finite.
template <int COUNT, int WIDTH, class Of>
DEVICE bool load_tile(R* tile, int line, int dim, long long stride, Of vector_of_row) {
    // Elements of 16 bytes, neighbours of which neighbouring threads read.
    constexpr int PIECE = 16 / sizeof(*vector_of_row(0));
    bool finite = true;
#pragma unroll 4
    for (int i = threadIdx.x; i < COUNT * (WIDTH / PIECE); i += THREADS) {
        const int row = i / (WIDTH / PIECE), d = i % (WIDTH / PIECE) * PIECE;
        const auto* from = vector_of_row(row);
        R piece[PIECE] = {};
        if (from && is_packed(from, stride) && d + PIECE <= dim) {
            read_piece(from + d, piece);
        } else if (from) {
#pragma unroll
            for (int j = 0; j < PIECE; ++j)
                if (d + j < dim) piece[j] = number(from[(d + j) * stride]);
        }
#pragma unroll
        for (int j = 0; j < PIECE; ++j) finite = finite && piece[j] - piece[j] == 0;
#pragma unroll
        for (int j = 0; j < PIECE; j += WIDE) {
            Wide wide;
#pragma unroll
            for (int n = 0; n < WIDE; ++n) wide.number[n] = piece[j + n];
            *(Wide*)(tile + row * line + d + j) = wide;
        }
    }
    return finite;
}

#if DMMA
#if defined(__CUDACC__)
DEVICE void copy_ahead(double* to, const double* from, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(bytes) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
#else
DEVICE void copy_ahead(double* to, const double* from, int bytes) {
    for (int n = 0; n < 2; ++n) to[n] = n * 8 < bytes ? from[n] : 0;
}
DEVICE void commit_copies() {}
DEVICE void wait_for_copies() {}
#endif

// Begins to copy vectors into a tile, zeros behind them and where there is none.
template <int COUNT, int WIDTH, class Of>
DEVICE void fetch_tile(R* tile, int line, int dim, const View<const double>& tensor, Of vector_of_row) {
    const long long stride = tensor.stride[5];
#pragma unroll 4
    for (int i = threadIdx.x; i < COUNT * (WIDTH / 2); i += THREADS) {
        const int row = i / (WIDTH / 2), d = i % (WIDTH / 2) * 2;
        const double* const from = vector_of_row(row);
        double* const to = tile + row * line + d;
        const int there = from ? least(most(dim - d, 0), 2) : 0;
        if (!there || is_packed(from, stride)) {
            copy_ahead(to, there ? from + d : tensor.data, there * 8);
        } else {
#pragma unroll
            for (int n = 0; n < 2; ++n) to[n] = n < there ? from[(d + n) * stride] : 0;
        }
    }
}
#endif

// The sum, and the largest, of the threads of a row.
DEVICE R row_sum(R x) {
#pragma unroll
    for (int distance = TX / 2; distance > 0; distance /= 2) x += from_partner(x, distance);
    return x;
}

DEVICE R row_most(R x) {
#pragma unroll
    for (int distance = TX / 2; distance > 0; distance /= 2) {
        const R other = from_partner(x, distance);
        x = other > x ? other : x;
    }
    return x;
}

#if DMMA
// c += a b on the tensor cores, of 16 rows, eight columns and a depth of eight, of which a thread has two rows, two columns
// and two places: the numbers 2t and 2t + 1 of thread t of a row, where the instruction has t and t + 4.
DEVICE void multiply(double& c00, double& c01, double& c10, double& c11, const double (&a)[2][2], double b0, double b1) {
#if !defined(__CUDACC__)
    multiply_on_host(c00, c01, c10, c11, a, b0, b1);
#elif __CUDA_ARCH__ >= 900
    asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+d"(c00), "+d"(c01), "+d"(c10), "+d"(c11)
        : "d"(a[0][0]), "d"(a[1][0]), "d"(a[0][1]), "d"(a[1][1]), "d"(b0), "d"(b1));
#else
#define MULTIPLY(c0, c1, a, b) \
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+d"(c0), "+d"(c1) : "d"(a), "d"(b))
    MULTIPLY(c00, c01, a[0][0], b0);
    MULTIPLY(c10, c11, a[1][0], b0);
    MULTIPLY(c00, c01, a[0][1], b1);
    MULTIPLY(c10, c11, a[1][1], b1);
#endif
}
#endif

// The site of a query and a key of the tile.
DEVICE Site site_of_pair(const Sizes& z, const Here& here, const Site& query, const int (&positions)[3][BK], int column) {
    Site at = query;
    long long token = 0;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
        at.kc[a] = here.group[a] + positions[a][column] * z.axes[a].dilation;
        token = token * z.axes[a].keys + at.kc[a];
    }
    at.k = (int)token;
    return at;
}

DEVICE bool is_marked(R x) { return x == 0 && 1 / x < 0; }

// Adds a weighted value, of which a number may not be finite.
DEVICE void add_value(R (&output)[OF_THREAD], R weight, const R* value, int place) {
    if (is_marked(weight)) return;
    const int lane = place, tx = place;
#pragma unroll
    for (int e = 0; e < OF_THREAD; ++e)
        if (ELEMENT(e) < DIM_V) output[e] += weight * value[ELEMENT(e)];
}

extern "C" __global__ void __launch_bounds__(THREADS) tiles(PARAMETERS, const Boxes boxes) {
    DYNAMIC_SHARED(Wide, memory);
    __shared__ long long key_at[PLACES][BK], value_at[PLACES][BK];
    __shared__ int key_position[PLACES][3][BK];
    R* const queries = (R*)memory;
    R* const tiles = queries + BQ * LINE;
#if !DMMA
    // Keys and values take turns in the same place.
    R *const keys = tiles, *const values = tiles;
    R* const weights = tiles + BK * (LINE > LINE_V ? LINE : LINE_V);
#endif
    const Tensors t = TENSORS;
#if DMMA
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#else
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
#endif

    Here here;
    long long rest = blockIdx.x;
    int position[3];
#pragma unroll
    for (int a = 2; a >= 0; --a) {
        const int dilation = z.axes[a].dilation, count = boxes.count[a] * dilation;
        const int box = (int)(rest % count);
        rest /= count;
        here.group[a] = box % dilation;
        here.first[a] = box / dilation * boxes.box[a];
    }
    here.h = (int)(rest % z.heads);
    here.b = (int)(rest / z.heads);
    if (!position_of(z, boxes, here, 0, position)) return;

    // The union of the windows, and what they have in common: both ends never decrease.
    Span span[3], common[3];
    int extent[3];
#pragma unroll
    for (int a = 0; a < 3; ++a) {
        const int last = least(here.first[a] + boxes.box[a], group_len(z.axes[a].queries, z.axes[a].dilation, here.group[a])) - 1;
        const Span first_window = window(z.axes[a], here.group[a], here.first[a]), last_window = window(z.axes[a], here.group[a], last);
        span[a] = {first_window.start, last_window.end};
        common[a] = {last_window.start, first_window.end};
        extent[a] = most(span[a].end - span[a].start, 0);
    }
    const int count = extent[0] * extent[1] * extent[2];

    Site site[ROWS];
    Row row[ROWS];
    Span seen[ROWS][3];
    bool inside[ROWS], alive[ROWS] = {};
    Running running[ROWS][STAGES];
    R peak[ROWS], output[ROWS][OF_THREAD];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        inside[i] = position_of(z, boxes, here, ROW(i), position);
        site[i] = Site{};
        site[i].b = here.b;
        site[i].h = here.h;
        site[i].hkv = here.h / z.per_kv;
        site[i].row = (unsigned)((long long)here.b * z.heads + here.h);
        long long token = 0;
#pragma unroll
        for (int a = 0; a < 3; ++a) {
            site[i].qc[a] = here.group[a] + (inside[i] ? position[a] : here.first[a]) * z.axes[a].dilation;
            token = token * z.axes[a].queries + site[i].qc[a];
            seen[i][a] = inside[i] ? window(z.axes[a], here.group[a], position[a]) : Span{0, 0};
        }
        site[i].q = (int)token;
        row[i] = Row{};
        peak[i] = -R_INF;
#pragma unroll
        for (int k = 0; k < STAGES; ++k) running[i][k] = begin_stage(stage_kind(k));
#pragma unroll
        for (int d = 0; d < OF_THREAD; ++d) output[i][d] = 0;
    }
    load_tile<BQ, DIM>(queries, LINE, z.dim, t.query.stride[5], [&](int r) {
        int at[3];
        const bool is_query = position_of(z, boxes, here, r, at);
#pragma unroll
        for (int a = 0; a < 3; ++a) at[a] = here.group[a] + at[a] * z.axes[a].dilation;
        return is_query ? vector_at(t.query, here.b, at, here.h) : nullptr;
    });

    // Says of the keys of a tile where they are; whether every query of the box sees this thread's key.
    const auto describe = [&](int first, int place) {
        if (threadIdx.x >= BK) return true;
        int of_box = first + threadIdx.x, at[3];
        const bool is_key = of_box < count;
        bool seen_by_all = is_key;
        if (!is_key) of_box = 0;
#pragma unroll
        for (int a = 2; a >= 0; --a) {
            const int p = span[a].start + of_box % extent[a];
            of_box /= extent[a];
            // No query sees a position below 0.
            key_position[place][a][threadIdx.x] = is_key ? p : -1;
            seen_by_all = seen_by_all && p >= common[a].start && p < common[a].end;
            at[a] = here.group[a] + p * z.axes[a].dilation;
        }
        key_at[place][threadIdx.x] = is_key ? vector_at(t.key, here.b, at, site[0].hkv) - t.key.data : -1;
        value_at[place][threadIdx.x] = is_key ? vector_at(t.value, here.b, at, site[0].hkv) - t.value.data : -1;
        return seen_by_all;
    };
#if DMMA
    const auto fetch = [&](int place, int slot) {
        R* const keys = tiles + slot * BK * (LINE + LINE_V);
        fetch_tile<BK, DIM>(keys, LINE, z.dim, t.key, [&](int r) { return key_at[place][r] < 0 ? nullptr : t.key.data + key_at[place][r]; });
        fetch_tile<BK, DIM_V>(keys + BK * LINE, LINE_V, z.dim_v, t.value, [&](int r) { return value_at[place][r] < 0 ? nullptr : t.value.data + value_at[place][r]; });
        commit_copies();
    };
    double held[HELD ? DIM / 8 : 1][ROWS][2];
    const auto query_fragment = [&](int d, double (&q)[ROWS][2]) {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const Wide two = *(const Wide*)(queries + ROW(i) * LINE + d + lane % 4 * 2);
            q[i][0] = two.number[0];
            q[i][1] = two.number[1];
        }
    };
    bool next_seen = count > 0 && describe(0, 0);
    __syncthreads();
    if (count > 0) fetch(0, 0);
    if (HELD)
#pragma unroll
        for (int d = 0; d < DIM; d += 8) query_fragment(d, held[d / 8]);

    int place = 0, slot = 0;
    for (int first = 0, next; first < count; first += BK, place = next, slot ^= 1) {
        const bool seen_by_all = next_seen, has_next = first + BK < count;
        next = (place + 1) % PLACES;
        if (has_next) next_seen = describe(first + BK, next);
        wait_for_copies();
        // Then no pair of the tile is looked at for its place. Every warp is done with the tile before.
        const bool is_full = __syncthreads_and(seen_by_all);
        if (has_next) fetch(next, slot ^ 1);
        const R* const keys = tiles + slot * BK * (LINE + LINE_V);
        const R* const values = keys + BK * LINE;
        // Where every pair counts, what is not finite needs no care.
        bool all_finite = true;
        if (!is_full || Window::MASKED) {
            for (int i = threadIdx.x; i < BK * (DIM_V / 2); i += THREADS) {
                const Wide two = *(const Wide*)(values + i / (DIM_V / 2) * LINE_V + i % (DIM_V / 2) * 2);
                all_finite = all_finite && two.number[0] - two.number[0] == 0 && two.number[1] - two.number[1] == 0;
            }
            all_finite = __syncthreads_and(all_finite);
        }
#else
    const int place = 0;
    for (int first = 0; first < count; first += BK) {
        __syncthreads();
        const bool seen_by_all = describe(first, place);
        // Then no pair of the tile is looked at for its place.
        const bool is_full = __syncthreads_and(seen_by_all);
        load_tile<BK, DIM>(keys, LINE, z.dim, t.key.stride[5], [&](int r) { return key_at[place][r] < 0 ? nullptr : t.key.data + key_at[place][r]; });
        __syncthreads();
#endif

        R scores[ROWS][COLUMNS] = {};
#if DMMA
#pragma unroll(HELD ? DIM / 8 : 2)
        for (int d = 0; d < DIM; d += 8) {
            if (!HELD) query_fragment(d, held[0]);
            const double (&q)[ROWS][2] = held[HELD ? d / 8 : 0];
#pragma unroll
            for (int n = 0; n < BK / 8; ++n) {
                const Wide k = *(const Wide*)(keys + (n * 8 + lane / 4) * LINE + d + lane % 4 * 2);
                multiply(scores[0][2 * n], scores[0][2 * n + 1], scores[1][2 * n], scores[1][2 * n + 1], q, k.number[0], k.number[1]);
            }
        }
#else
#pragma unroll 4
        for (int d = 0; d < DIM; d += WIDE) {
            Wide q[ROWS], k[COLUMNS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) q[i] = *(const Wide*)(queries + ROW(i) * LINE + d);
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) k[j] = *(const Wide*)(keys + COLUMN(j) * LINE + d);
#pragma unroll
            for (int n = 0; n < WIDE; ++n)
#pragma unroll
                for (int i = 0; i < ROWS; ++i)
#pragma unroll
                    for (int j = 0; j < COLUMNS; ++j) scores[i][j] += q[i].number[n] * k[j].number[n];
        }
#endif
#if !DMMA
        __syncthreads();
        const bool finite = load_tile<BK, DIM_V>(values, LINE_V, z.dim_v, t.value.stride[5], [&](int r) { return value_at[place][r] < 0 ? nullptr : t.value.data + value_at[place][r]; });
#endif

        // Scores become weights. Of a tile that is seen whole the places of its pairs do not matter, and where a program
        // does not look at them either nothing branches.
        const auto weigh = [&](auto whole) {
            constexpr bool FULL = decltype(whole)::value;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const auto of_mask = Window::fix_mask(t, site[i], row[i]);
                const auto of_stages = Window::fix_stages(t, site[i], row[i]);
                unsigned live = 0;
                R largest = -R_INF;
                // What of a pair is of use again: its score.
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
                    const Site at = site_of_pair(z, here, site[i], key_position[place], COLUMN(j));
                    bool counts = true;
                    if (!FULL) {
#pragma unroll
                        for (int a = 0; a < 3; ++a) {
                            const int p = key_position[place][a][COLUMN(j)];
                            counts = counts && p >= seen[i][a].start && p < seen[i][a].end;
                        }
                    }
                    if (counts) counts = Window::mask(t, at, row[i], of_mask);
                    scores[i][j] *= (R)z.scale;
                    if (!counts) continue;
                    live |= 1u << j;
                    if (t.rpb.data) {
                        int entry[3];
                        bias_entry(z, at, entry);
                        scores[i][j] += bias_of(t.rpb, at, entry);
                    }
#if EXPONENTIAL >= 0
                    R elements[STAGES] = {};
                    Window::stages(t, at, row[i], {scores[i][j], 0, 0, 0}, of_stages, elements);
                    if (elements[EXPONENTIAL] > largest) largest = elements[EXPONENTIAL];
#endif
                }
                alive[i] = alive[i] || live != 0;
#if EXPONENTIAL >= 0
                largest = row_most(largest);
                if (largest > peak[i]) {
                    const R factor = f_exp(peak[i] - largest);
                    running[i][EXPONENTIAL].value *= factor;
                    running[i][EXPONENTIAL].peak = peak[i] = row[i].shift = largest;
#pragma unroll
                    for (int e = 0; e < OF_THREAD; ++e) output[i][e] *= factor;
                }
#endif
                const auto of_local = Window::fix_local(t, site[i], row[i]);
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
                    // Of a pair that does not count too, so that nothing branches: what it reads is there.
                    const bool counts = live >> j & 1;
                    const Site at = site_of_pair(z, here, site[i], key_position[place], COLUMN(j));
                    const Pair x = {scores[i][j], 0, 0, 0};
                    R elements[STAGES] = {}, w[1];
                    Window::stages(t, at, row[i], x, of_stages, elements);
                    Window::local(t, at, row[i], x, of_local, w);
                    w[0] = counts ? w[0] + 0 : (R)-0.0;
#pragma unroll
                    for (int k = 0; k < STAGES; ++k) {
                        // What the weight is made of too: its peak is that of the tile.
                        if (k == EXPONENTIAL) running[i][k].value += counts ? f_exp(elements[k] - row[i].shift) : (R)0;
                        else if (is_swept(k) && counts) add_element(stage_kind(k), running[i][k], elements[k]);
                    }
#if DMMA
                    scores[i][j] = w[0];
#else
                    weights[ROW(i) * LINE_P + COLUMN(j)] = w[0];
#endif
                }
            }
        };
        if (is_full) weigh(Whole<true>());
        else weigh(Whole<false>());
#if !DMMA
        const bool all_finite = __syncthreads_and(finite);
#endif
        if (!all_finite) {
#if DMMA
            for (int owner = 0; owner < TX; ++owner) {
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
                    const R* const value = values + (j / 2 * 8 + owner * 2 + j % 2) * LINE_V;
#pragma unroll
                    for (int i = 0; i < ROWS; ++i) add_value(output[i], from_lane(scores[i][j], lane / 4 * 4 + owner), value, lane);
                }
            }
#else
            for (int k = 0; k < BK; ++k) {
#pragma unroll
                for (int i = 0; i < ROWS; ++i) add_value(output[i], weights[ROW(i) * LINE_P + k], values + k * LINE_V, tx);
            }
#endif
            continue;
        }
#if DMMA
#pragma unroll
        for (int k = 0; k < BK; k += 8) {
            double w[ROWS][2];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                w[i][0] = scores[i][k / 4];
                w[i][1] = scores[i][k / 4 + 1];
            }
#pragma unroll
            for (int n = 0; n < DIM_V / 8; ++n) {
                const double* const value = values + (k + lane % 4 * 2) * LINE_V + n * 8 + lane / 4;
                multiply(output[0][2 * n], output[0][2 * n + 1], output[1][2 * n], output[1][2 * n + 1], w, value[0], value[LINE_V]);
            }
        }
#else
        for (int k = 0; k < BK; k += WIDE) {
            Wide w[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) w[i] = *(const Wide*)(weights + ROW(i) * LINE_P + k);
#pragma unroll
            for (int n = 0; n < WIDE; ++n) {
#pragma unroll
                for (int e = 0; e < OF_THREAD; e += WIDE) {
                    if (DIM_V % (TX * WIDE) != 0 && ELEMENT(e) >= DIM_V) continue;
                    const Wide v = *(const Wide*)(values + (k + n) * LINE_V + ELEMENT(e));
#pragma unroll
                    for (int i = 0; i < ROWS; ++i)
#pragma unroll
                        for (int m = 0; m < WIDE; ++m) output[i][e + m] += w[i].number[n] * v.number[m];
                }
            }
        }
#endif
    }

#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        bool is_alive = row_sum(alive[i] ? (R)1 : (R)0) > 0;
#pragma unroll
        for (int k = 0; k < STAGES; ++k) {
            if (!is_swept(k)) continue;
            row[i].stage[k] = finish_stage<TX>(stage_kind(k), running[i][k]);
            if (stage_kind(k) == LSE_STAGE && row[i].stage[k] == -R_INF) is_alive = false;
        }
        R factor[1];
        OfRow::factor(t, site[i], row[i], factor);
        if (!inside[i]) continue;
        constexpr int L = LOGSUMEXP < 0 ? 0 : LOGSUMEXP;
        if (threadIdx.x % TX == 0 && t.to_logsumexp.data) put(number_at(t.to_logsumexp, site[i]), is_alive ? row[i].stage[L] : -R_INF);
        if (!t.to_output.data) continue;
        auto* to = vector_at(t.to_output, here.b, site[i].qc, here.h);
#pragma unroll
        for (int e = 0; e < OF_THREAD; ++e)
            if (ELEMENT(e) < z.dim_v) put(to + ELEMENT(e) * t.to_output.stride[5], is_alive ? output[i][e] * factor[0] : (R)0);
    }
}
