// Adds products of rows and columns.
fn add_$NAME$(sum: Piece, member: u32, row: u32, column: u32) -> Piece {
    var result = sum;
    for (var e = 0u; e < ELEMENTS; e++) {
        let i = e * SUBGROUP + member;
        for (var k = 0u; k < EDGE / 4u; k++) {
            let at = row + i / EDGE % EDGE * $STRIDE$ + k;
            result[e] += dot(vec4<f32>($CELL$), vec4<f32>(tiles[column + i % EDGE * $STRIDE$ + k]));
        }
    }
    return result;
}
