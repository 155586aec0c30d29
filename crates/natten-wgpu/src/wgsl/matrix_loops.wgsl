// Sums of products of matrices, an element after the other: a lane holds every SUBGROUP-th element.
const ELEMENTS: u32 = (EDGE * EDGE + SUBGROUP - 1u) / SUBGROUP;
alias Piece = array<f32, ELEMENTS>;

fn add_scores(sum: ptr<function, Piece>, member: u32, query: u32, key: u32) {
    for (var e = 0u; e < ELEMENTS; e++) {
        let i = e * SUBGROUP + member;
        for (var k = 0u; k < EDGE / 4u; k++) {
            let a = vec4<f32>(kept[query + i / EDGE % EDGE * KEY_STRIDE + k]);
            (*sum)[e] += dot(a, vec4<f32>(tiles[key + i % EDGE * KEY_STRIDE + k]));
        }
    }
}

fn add_values(sum: ptr<function, Piece>, member: u32, weight: u32, value: u32) {
    for (var e = 0u; e < ELEMENTS; e++) {
        let i = e * SUBGROUP + member;
        for (var k = 0u; k < EDGE; k++) {
            let w = f32(weights[weight + i / EDGE % EDGE * WEIGHT_STRIDE + k / 4u][k % 4u]);
            (*sum)[e] += w * f32(tiles[value + k * VALUE_STRIDE + i % EDGE / 4u][i % 4u]);
        }
    }
}

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
