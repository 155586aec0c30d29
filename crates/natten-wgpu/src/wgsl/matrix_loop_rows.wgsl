// Adds products of rows and columns.
fn add_$NAME$(sum: ptr<function, Piece>, member: u32, row: u32, column: u32) {
    for (var e = 0u; e < ELEMENTS; e++) {
        let i = e * SUBGROUP + member;
        for (var k = 0u; k < EDGE / 4u; k++) {
            let at = row + i / EDGE % EDGE * $STRIDE$ + k;
            (*sum)[e] += dot(vec4<f32>($CELL$), vec4<f32>(tiles[column + i % EDGE * $STRIDE$ + k]));
        }
    }
}
