// Adds up the tables of a gradient, in their order.

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let entry = (group.y * groups.x + group.x) * 64u + lane;
    if (entry >= ENTRIES) { return; }
    var sum = R(0.0);
    for (var piece = 0u; piece < PIECES; piece++) { sum += arena[TABLE + piece * ENTRIES + entry]; }
    arena[TO + entry] = sum;
}
