// Adds up the tables of a captured tensor's gradient, or of the bias', in their order. The result has up to eight axes.

struct Shape {
    int rank;
    int extent[8];
};

extern "C" __global__ void __launch_bounds__(256) reduce(View<TO> to, Shape shape, const void* tables, long long pieces, long long entries) {
    for (long long entry = (long long)blockIdx.x * blockDim.x + threadIdx.x; entry < entries; entry += (long long)gridDim.x * blockDim.x) {
        R sum = 0;
        for (long long piece = 0; piece < pieces; ++piece) sum += ((const R*)tables)[piece * entries + entry];
        long long rest = entry, offset = 0;
        for (int a = shape.rank - 1; a >= 0; --a) {
            offset += rest % shape.extent[a] * to.stride[a];
            rest /= shape.extent[a];
        }
        put(to.data + offset, sum);
    }
}
