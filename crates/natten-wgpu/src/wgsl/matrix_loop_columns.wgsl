// Adds products of weights and the elements of columns.
fn add_$NAME$(sum: Piece, member: u32, weight: u32, column: u32) -> Piece {
    var result = sum;
    for (var e = 0u; e < ELEMENTS; e++) {
        let i = e * SUBGROUP + member;
        for (var k = 0u; k < EDGE; k++) {
            let w = f32(weights[weight + i / EDGE % EDGE * WEIGHT_STRIDE + k / 4u][k % 4u]);
            result[e] += w * f32(tiles[column + k * $STRIDE$ + i % EDGE / 4u][i % 4u]);
        }
    }
    return result;
}
