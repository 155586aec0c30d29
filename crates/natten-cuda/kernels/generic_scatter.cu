// Gradients of captured tensors and of the bias: what every row adds to the elements that it loads. A unit of work is a
// group of lanes, and takes rows whose elements no other unit of its piece touches: rows that differ in what the index
// determines (of batch entry, head and token) never meet in an element, and of the other rows each piece takes a run,
// into a table of its own. The tables are added in their order at the end: the same sum in every run.

// Which of batch entry, head and token the index determines, 1 or 0 each.
struct Shares {
    int determined[3];
    int pieces;
    long long entries;
};

// Rows that never meet, or that do.
DEVICE long long rows_of(const Shares& shares, const long long extent[3], bool that_meet) {
    long long rows = 1;
#pragma unroll
    for (int i = 0; i < 3; ++i)
        if ((shares.determined[i] == 0) == that_meet) rows *= extent[i];
    return rows;
}

DEVICE long long units_of(const Shares& shares, const long long extent[3]) {
    return rows_of(shares, extent, false) * shares.pieces;
}

// Where the table of a unit begins.
DEVICE long long table_of(const Shares& shares, const long long extent[3], long long unit) {
    return unit / rows_of(shares, extent, false) * shares.entries;
}

// Shows `body` the rows of a unit, in their order.
template <class Body> DEVICE void each_row(const Shares& shares, const long long extent[3], long long unit, Body body) {
    const long long outer = rows_of(shares, extent, false), inner = rows_of(shares, extent, true);
    const long long piece = unit / outer, end = inner * (piece + 1) / shares.pieces;
    for (long long number = inner * piece / shares.pieces; number < end; ++number) {
        long long of_outer = unit % outer, of_inner = number, at[3];
#pragma unroll
        for (int i = 2; i >= 0; --i) {
            long long& rest = shares.determined[i] ? of_outer : of_inner;
            at[i] = rest % extent[i];
            rest /= extent[i];
        }
        body((int)at[0], (int)at[1], at[2]);
    }
}

// Adds the lanes' gradients to elements of a table. Lanes of one element are added up by the first of them, in order.
DEVICE void scatter(R* table, bool live, long long element, R gradient) {
    const unsigned bits = ballot(live);
    if (!bits) return;
    const unsigned peers = alike(live ? element : -1) & bits;
    R sum = 0;
    for (unsigned rest = bits; rest; rest &= rest - 1) {
        const int from = first_bit(rest);
        const R other = from_lane(gradient, from);
        if (peers >> from & 1) sum += other;
    }
    if (live && first_bit(peers) == lane_of_group()) table[element] += sum;
    wait_for_group();
}

#if SCATTER_PAIRS
template <class F> DEVICE void scatter_pair(const Tensors& t, const Sizes& z, const Site& at, const Row& row, bool live, R* table) {
    const Pair x = pair_of<F, true>(t, z, at, live);
#if SCATTER_BIAS
    R ds[2] = {0, 0};
    if (live) F::grad_score(t, at, row, x, F::fix_grad_score(t, at, row), ds);
    int entry[3];
    bias_entry(z, at, entry);
    long long element = at.h;
#pragma unroll
    for (int a = 0; a < 3; ++a) element = element * (2 * z.axes[a].kernel - 1) + entry[a];
    scatter(table, live, element, ds[TANGENTS]);
#else
    long long elements[F::LOADS + 1] = {};
    R gradients[F::LOADS + 1] = {};
    if (live) F::loads(t, at, row, x, F::fix_loads(t, at, row), elements, gradients);
#pragma unroll
    for (int i = 0; i < F::LOADS; ++i) scatter(table, live, elements[i], gradients[i]);
#endif
}

extern "C" __global__ void __launch_bounds__(128) scatter_pairs(PARAMETERS, void* tables, Shares shares) {
    const Tensors t = TENSORS;
    const long long extent[3] = {z.batch, z.heads, z.queries};
    for (long long unit = this_group(); unit < units_of(shares, extent); unit += all_groups()) {
        R* table = (R*)tables + table_of(shares, extent, unit);
        each_row(shares, extent, unit, [&](int b, int h, long long q) {
            const Site query = site_of_query(z, b, h, q);
            const Row row = load_row(t.numbers, row_number(z, query));
            if (!row.alive) return;
            sweep_window(t, z, row, query, [&](const Site& at, bool live) { scatter_pair<Window>(t, z, at, row, live, table); });
#if ADDITIONAL_TOKENS && !SCATTER_BIAS
            sweep_additional(z, query, [&](const Site& at, bool live) { scatter_pair<Additional>(t, z, at, row, live, table); });
#endif
        });
    }
}
#endif
