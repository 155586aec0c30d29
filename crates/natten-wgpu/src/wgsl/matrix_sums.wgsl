// Scales what a lane has of a row in a part of its sums, and adds what infinite and NaN elements make of it.
fn edit_$NAME$(walk: Walk, step: i32, row: u32, part: u32, column: u32, count: u32, shrink: f32, odd: u32, visible: u32) {
    for (var c = part; c < count; c += LANES) {
        let at = row * SCORE_STRIDE + c;
        var four = shrink * scores[at];
        if (odd != 0u) {
            for (var other = 0u; other < 32u; other++) {
                if (((visible >> other) & 1u) == 0u) { continue; }
                let cell = (column_of(walk, step, other) * $DIMS$u + column) / 4u + c;
                let element = vec4<f32>($NAME$_columns[cell]);
                let weight = f32(weights[$WEIGHTS$ + row * WEIGHT_STRIDE + other / 4u][other % 4u]);
                four += select(weight * element, vec4<f32>(), abs(element) <= vec4<f32>(LARGEST_HALF));
            }
        }
        scores[at] = four;
    }
}

// Writes what a lane has of a row in a part of its sums.
fn write_$NAME$(row: u32, part: u32, column: u32, count: u32, factor: f32, vector: u32) {
    for (var c = part; c < count; c += LANES) {
        let four = factor * scores[row * SCORE_STRIDE + c];
        $NAME$_sums[(vector * $DIMS$u + column) / 4u + c] = vec2<u32>(
            to_half(four.x) | (to_half(four.y) << 16u), to_half(four.z) | (to_half(four.w) << 16u));
    }
}
