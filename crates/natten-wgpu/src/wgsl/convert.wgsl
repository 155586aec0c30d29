// Between a tensor as it lies in memory, strided, in its own dtype, and its numbers in a row.
alias R = $REAL$;

//:if WRITES
@group(0) @binding(0) var<storage, read_write> tensor: array<$WORD$>;
@group(0) @binding(1) var<storage, read_write> numbers: array<$NUMBER$>;
//:else
@group(0) @binding(0) var<storage, read> tensor: array<$WORD$>;
@group(0) @binding(1) var<storage, read_write> numbers: array<$NUMBER$>;
//:end
// How many, where in the row they begin, the place of the first in memory, axes; then for each axis its extent, its
// stride in memory, and its stride in the row.
@group(0) @binding(2) var<storage, read> parameters: array<i32>;

fn from_half(h: u32) -> f32 {
    let sign = (h & 0x8000u) << 16u;
    let size = h & 0x7fffu;
    if (size >= 0x7c00u) { return bitcast<f32>(sign | 0x7f800000u | ((size & 0x3ffu) << 13u)); }
    if (size < 0x400u) { return bitcast<f32>(sign | bitcast<u32>(f32(size) * 5.9604644775390625e-8)); }
    return bitcast<f32>(sign | ((size << 13u) + 0x38000000u));
}
fn to_half(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) { return sign | 0x7e00u; }
    if (size >= 0x477ff000u) { return sign | 0x7c00u; }
    if (size < 0x38800000u) { return sign | u32(round(bitcast<f32>(size) * 16777216.0)); }
    return sign | ((size + 0xfffu + ((size >> 13u) & 1u) - 0x38000000u) >> 13u);
}
fn from_brain(h: u32) -> f32 { return bitcast<f32>(h << 16u); }
fn to_brain(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return (bits >> 16u) | 0x40u; }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

//:if PACKED_WRITES
// The number of the row that a place in memory holds, or -1. Axes are in the order of their strides, the largest first,
// so that a place falls apart by division.
fn number_at(place: i32) -> i32 {
    var rest = place - parameters[2];
    var number = 0;
    if (rest < 0) { return -1; }
    for (var a = 0; a < parameters[3]; a++) {
        let index = min(rest / parameters[4 + 3 * a + 1], parameters[4 + 3 * a] - 1);
        rest -= index * parameters[4 + 3 * a + 1];
        number += index * parameters[4 + 3 * a + 2];
    }
    return select(-1, number + parameters[1], rest == 0);
}
//:end

//:if HALVES
// The bits of a number of vectors that are packed with padding.
fn half_of(number: i32) -> u32 {
    let d = number % $DIM$;
    return (numbers[number / $DIM$ * $WORDS$ + d / 2] >> (16u * u32(d & 1))) & 0xffffu;
}
//:end

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = i32((group.y * groups.x + group.x) * 64u + lane);
//:if PACKED_WRITES
    if (id >= parameters[0]) { return; }
    var rest = id;
    var place = parameters[2];
    for (var a = parameters[3] - 1; a >= 0; a--) {
        let extent = parameters[4 + 3 * a];
        place += rest % extent * parameters[4 + 3 * a + 1];
        rest /= extent;
    }
    // One invocation writes both numbers of a word, and keeps what is not the tensor's.
    if ((place & 1) == 1 && number_at(place - 1) >= 0) { return; }
    let word = place >> 1u;
    var bits = tensor[word];
    for (var half = 0; half < 2; half++) {
        let number = number_at(2 * word + half);
        if (number >= 0) {
            let shift = 16u * u32(half);
//:if HALVES
            bits = (bits & ~(0xffffu << shift)) | (half_of(number) << shift);
//:else
            bits = (bits & ~(0xffffu << shift)) | ($NARROW$(f32(numbers[number])) << shift);
//:end
        }
    }
    tensor[word] = bits;
//:else
    if (id >= parameters[0]) { return; }
    var rest = id;
    var place = parameters[2];
    for (var a = parameters[3] - 1; a >= 0; a--) {
        let extent = parameters[4 + 3 * a];
        place += rest % extent * parameters[4 + 3 * a + 1];
        rest /= extent;
    }
    let number = parameters[1] + id;
//:if WRITES
    tensor[place] = $WORD$(numbers[number]);
//:else
//:if PACKED
    numbers[number] = $NUMBER$($WIDEN$((tensor[place >> 1u] >> (16u * u32(place & 1))) & 0xffffu));
//:else
    numbers[number] = $NUMBER$(tensor[place]);
//:end
//:end
//:end
}
