// Gradients of captured tensors and of the bias: what every pair adds to the elements that it loads. An invocation takes
// rows whose elements no other one of its piece touches: rows that differ in what the index determines (batch entry,
// head, query) never meet in an element, and of the others each piece takes a run, into a table of its own.

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let unit = (group.y * groups.x + group.x) * 64u + lane;
    if (unit >= OUTER * PIECES) { return; }
    let piece = unit / OUTER;
    let table = TABLE + piece * ENTRIES;
    let first = INNER / PIECES * piece + min(piece, INNER % PIECES);
    let count = INNER / PIECES + select(0u, 1u, piece < INNER % PIECES);
    for (var number = first; number < first + count; number++) {
        var outer = unit % OUTER;
        var inner = number;
$ROW_OF_UNIT$
        let vector = u32((i32(b) * QUERIES + i32(q)) * HEADS + i32(h));
        let query = site_of_query(vector);
        let row = load_row(vector);
        if (!row.alive) { continue; }
$SWEEP$
    }
}
