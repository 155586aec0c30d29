// What the unfused pair has in memory for every slot of a query: the score or its tangent, or the gradient of the weight.

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = (group.y * groups.x + group.x) * 64u + lane;
    if (number >= u32(BATCH * HEADS * QUERIES * SLOTS)) { return; }
    let slot = i32(number) % SLOTS;
    let q = i32(number) / SLOTS % QUERIES;
    let of_head = i32(number) / SLOTS / QUERIES;
    let query = site_of_query(u32((of_head / HEADS * QUERIES + q) * HEADS + of_head % HEADS));
    var at = query;
    var has_key = true;
    if (slot >= SLOTS - ADDITIONAL) {
        at = with_additional(query, slot - (SLOTS - ADDITIONAL));
    } else {
        let window = windows(query.qc);
        let offset = vec3<i32>(slot / (WINDOW.y * WINDOW.z), slot / WINDOW.z % WINDOW.y, slot % WINDOW.z);
        let position = window.start + offset;
        has_key = all(position < window.end);
        at = with_key(query, query.qc % DILATION + DILATION * position);
    }
    var result = $EMPTY$;
    if (has_key) { result = pair_of(at).$FIELD$; }
    arena[TO_A + number] = result;
}
