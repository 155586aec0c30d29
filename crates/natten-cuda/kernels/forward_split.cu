// Splits vectors of f32 into planes of bf16, for forward_sm90.cu: each plane is what the ones before left, rounded, so that
// their sum has 8 bits a plane. A row becomes its planes one behind the other, each WIDTH columns, zeros behind DIM.
//
// In front of this text stand the integer types, and
//   PLANES DIM WIDTH      WIDTH is a multiple of 8

// A tensor of any strides, in elements.
struct View {
    const float *data;
    i64 stride[8];
};

// The axes of rows, outermost first, those that lack at the end 1; which stride is that of columns: 5, or 3 of additional
// tokens.
struct Rows {
    int extent[5];
    int column;
};

// The nearest bf16; what would round to infinity is cut off instead, so that what is left stays finite.
__device__ __forceinline__ u32 rounded(float x) {
    u32 bits = __float_as_uint(x), exponent = bits & 0x7F800000u;
    if (exponent == 0x7F800000u) return (bits & 0x007FFFFFu ? bits | 0x00400000u : bits) & 0xFFFF0000u;
    u32 near = bits + 0x7FFFu + (bits >> 16 & 1);
    return ((near & 0x7F800000u) == 0x7F800000u ? bits : near) & 0xFFFF0000u;
}

extern "C" __global__ void __launch_bounds__(256) split_rows(const View from, u16 *to, const Rows rows, i64 count) {
    constexpr int PIECES = WIDTH / 8;
    i64 index = (i64)blockIdx.x * 256 + threadIdx.x;
    if (index >= count) return;
    int column = (int)(index % PIECES) * 8;
    i64 row = index / PIECES, rest = row;
    const float *data = from.data;
#pragma unroll
    for (int a = 4; a >= 0; a--) {
        data += rest % rows.extent[a] * from.stride[a];
        rest /= rows.extent[a];
    }
    i64 stride = rows.column == 5 ? from.stride[5] : from.stride[3];
    float left[8];
    if (stride == 1 && ((u64)data & 15) == 0 && column + 8 <= DIM) {
        float4 low = *reinterpret_cast<const float4 *>(data + column);
        float4 high = *reinterpret_cast<const float4 *>(data + column + 4);
        left[0] = low.x, left[1] = low.y, left[2] = low.z, left[3] = low.w;
        left[4] = high.x, left[5] = high.y, left[6] = high.z, left[7] = high.w;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) left[i] = column + i < DIM ? data[(column + i) * stride] : 0.0f;
    }
    u16 *place = to + row * (PLANES * WIDTH) + column;
#pragma unroll
    for (int plane = 0; plane < PLANES; plane++) {
        u32 part[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            part[i] = rounded(left[i]);
            // Of what is not finite nothing is left.
            left[i] = (part[i] & 0x7F800000u) == 0x7F800000u ? 0.0f : left[i] - __uint_as_float(part[i]);
        }
        *reinterpret_cast<uint4 *>(place + plane * WIDTH) =
            make_uint4(part[0] >> 16 | part[1], part[2] >> 16 | part[3], part[4] >> 16 | part[5], part[6] >> 16 | part[7]);
    }
}
