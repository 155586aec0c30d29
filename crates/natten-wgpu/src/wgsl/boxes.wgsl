// Boxes of queries and keys, and where a workgroup stands among them.

// A box in one residue group: its positions along each axis, both ends counted.
struct Cut {
    residue: vec3<i32>,
    first: vec3<i32>,
    last: vec3<i32>,
    // Whether the group is long enough to have it.
    is_there: bool,
}

fn cut_of(number: i32, pieces: vec3<i32>, tile: vec3<i32>, shape: vec3<i32>) -> Cut {
    var cut: Cut;
    var rest = number;
    cut.residue.z = rest % DILATION.z;
    rest /= DILATION.z;
    cut.first.z = rest % pieces.z * tile.z;
    rest /= pieces.z;
    cut.residue.y = rest % DILATION.y;
    rest /= DILATION.y;
    cut.first.y = rest % pieces.y * tile.y;
    rest /= pieces.y;
    cut.residue.x = rest % DILATION.x;
    rest /= DILATION.x;
    cut.first.x = rest * tile.x;
    let group_len = (shape - cut.residue + DILATION - 1) / DILATION;
    cut.last = min(cut.first + tile, group_len) - 1;
    cut.is_there = all(cut.first < group_len);
    return cut;
}

fn query_cut(number: i32) -> Cut { return cut_of(number, QUERY_PIECES, QUERY_TILE, QUERY_SHAPE); }
fn key_cut(number: i32) -> Cut { return cut_of(number, KEY_PIECES, KEY_TILE, KEY_SHAPE); }

// The place of a cell in a box, and whether a cell has one.
fn offset_in(cell: i32, tile: vec3<i32>) -> vec3<i32> {
    return vec3<i32>(cell / (tile.y * tile.z), cell / tile.z % tile.y, cell % tile.z);
}
fn has_cell(cell: i32, tile: vec3<i32>) -> bool { return cell < tile.x * tile.y * tile.z; }

fn key_vector_at(b: i32, h: i32, kc: vec3<i32>) -> u32 {
    return u32((b * KEYS + (kc.x * KEY_SHAPE.y + kc.y) * KEY_SHAPE.z + kc.z) * HEADS_KV + h / PER_KV);
}
fn additional_vector_at(b: i32, h: i32, n: i32) -> u32 {
    return u32(BATCH * KEYS * HEADS_KV + (b * ADDITIONAL + n) * HEADS_KV + h / PER_KV);
}

// The boxes that a box walks, in order: how many along each axis, and where one starts.
fn walk_of(start: vec3<i32>, end: vec3<i32>, tile: vec3<i32>) -> vec3<i32> {
    return max((end - start + tile - 1) / tile, vec3<i32>(0));
}
fn step_of(number: i32, steps: vec3<i32>) -> vec3<i32> {
    return vec3<i32>(
        number / max(steps.y * steps.z, 1), number / max(steps.z, 1) % max(steps.y, 1), number % max(steps.z, 1));
}
