// A strided tensor of f16 to vectors one behind the other, padded with zeros: an invocation writes two numbers.
@group(0) @binding(0) var<storage, read> tensor: array<u32>;
@group(0) @binding(1) var<storage, read_write> packed: array<u32>;
// As convert.wgsl has them; the second is the first vector.
@group(0) @binding(2) var<storage, read> parameters: array<i32>;

fn half_of(number: i32) -> u32 {
    var rest = number;
    var place = parameters[2];
    for (var a = parameters[3] - 1; a >= 0; a--) {
        let extent = parameters[4 + 3 * a];
        place += rest % extent * parameters[4 + 3 * a + 1];
        rest /= extent;
    }
    return (tensor[place >> 1u] >> (16u * u32(place & 1))) & 0xffffu;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = i32((group.y * groups.x + group.x) * 64u + lane);
    let vector = id / $WORDS$;
    let d = id % $WORDS$ * 2;
    if (vector * $DIM$ >= parameters[0]) { return; }
    var word = 0u;
    if (d < $DIM$) { word = half_of(vector * $DIM$ + d); }
    if (d + 1 < $DIM$) { word |= half_of(vector * $DIM$ + d + 1) << 16u; }
    packed[parameters[1] * $WORDS$ + id] = word;
}
