// Numbers of f16: what they reach, and their bits.
const LARGEST_HALF = 65504.0;
// An infinite value counts however small its weight is.
const LEAST_HALF = vec4<f32>(5.9604644775390625e-8);

fn to_half(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) { return sign | 0x7e00u; }
    if (size >= 0x477ff000u) { return sign | 0x7c00u; }
    if (size < 0x38800000u) { return sign | u32(round(bitcast<f32>(size) * 16777216.0)); }
    return sign | ((size + 0xfffu + ((size >> 13u) & 1u) - 0x38000000u) >> 13u);
}

