// forward_mma_instructions.cu on the host. Copies arrive at once.

inline void copy(u32 to, const u16* from, bool is_there) {
    if (is_there) memcpy(dynamic_shared + to, from, 16);
    else memset(dynamic_shared + to, 0, 16);
}
inline void commit_copies() {}
template <int PENDING> void wait_copies() {}
inline int anew(int n) { return n; }

// Matrix i of 8 by 8 has its rows where the lanes from 8i on say; a lane gets numbers 2q and 2q + 1 of row lane / 4.
inline void load_matrices(u32 (&m)[4], u32 address) {
    struct Four { u32 m[4]; };
    const int lane = current % LANES;
    const Four four = exchange(address, [=](auto of) {
        Four four;
        for (int i = 0; i < 4; ++i) memcpy(&four.m[i], dynamic_shared + of(8 * i + lane / 4) + lane % 4 * 4, 4);
        return four;
    });
    memcpy(m, four.m, sizeof(m));
}

// The same of the transposed matrices.
inline void load_transposed(u32 (&m)[4], u32 address) {
    struct Four { u32 m[4]; };
    const int lane = current % LANES;
    const Four four = exchange(address, [=](auto of) {
        Four four;
        for (int i = 0; i < 4; ++i) {
            u16 pair[2];
            for (int e = 0; e < 2; ++e) memcpy(&pair[e], dynamic_shared + of(8 * i + lane % 4 * 2 + e) + lane / 4 * 2, 2);
            four.m[i] = pair[0] | (u32)pair[1] << 16;
        }
        return four;
    });
    memcpy(m, four.m, sizeof(m));
}

inline float half_of(u32 pair, int which) { return wide((u16)(pair >> 16 * which)); }

// c += a b. A lane with row g = lane / 4 and q = lane % 4 has of a the rows g and g + 8 at depths 2q, 2q + 1 and these
// plus 8, of b the column g at the same depths, of c the rows g and g + 8 in columns 2q and 2q + 1.
inline void multiply(float* c, const u32* a, u32 b0, u32 b1) {
    struct Fragment { u32 a[4], b[2]; };
    struct Sums { float of[4]; };
    const Fragment mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const int lane = current % LANES;
    const Sums sums = exchange(mine, [=](auto of) {
        Sums sums = {};
        for (int i = 0; i < 4; ++i) {
            const int below = i / 2, column = lane % 4 * 2 + i % 2;
            for (int depth = 0; depth < 16; ++depth) {
                const int quad = depth % 8 / 2, half = depth / 8;
                const Fragment rows = of(lane / 4 * 4 + quad), columns = of(column * 4 + quad);
                sums.of[i] += half_of(rows.a[below + 2 * half], depth % 2) * half_of(columns.b[half], depth % 2);
            }
        }
        return sums;
    });
    for (int i = 0; i < 4; ++i) c[i] += sums.of[i];
}
