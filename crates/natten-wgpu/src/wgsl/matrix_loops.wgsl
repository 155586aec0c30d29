// Sums of products of matrices, an element after the other: a lane holds every SUBGROUP-th element.
const ELEMENTS: u32 = (EDGE * EDGE + SUBGROUP - 1u) / SUBGROUP;
alias Piece = array<f32, ELEMENTS>;

fn store_piece(sum: Piece, member: u32, at: u32) {
    var piece = sum;
    for (var e = 0u; e < ELEMENTS; e++) {
        let i = e * SUBGROUP + member;
        if (i < EDGE * EDGE) { scores[at + i / EDGE * SCORE_STRIDE + i % EDGE / 4u][i % 4u] = piece[e]; }
    }
}

fn load_piece(member: u32, at: u32) -> Piece {
    var piece = Piece();
    for (var e = 0u; e < ELEMENTS; e++) {
        let i = e * SUBGROUP + member;
        if (i < EDGE * EDGE) { piece[e] = scores[at + i / EDGE * SCORE_STRIDE + i % EDGE / 4u][i % 4u]; }
    }
    return piece;
}
