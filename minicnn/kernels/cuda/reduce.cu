// A sum over the first axis:
//
//     out[i] = sum over p of parts[p][i]
//
// Blocks that share a sum each write their part, and this kernel adds the parts: in float64, and
// always in the same order, which atomic additions would not. Threads beside each other read
// numbers beside each other; the 8 rows of a block share the parts between them.

// y = scale (the sum of `count` parts) + b, and with `relu` no less than 0 (a NaN stays one): what
// convolve.cu does itself where its blocks share no sums. y is (rows, F), F comes in fours; scale and
// b are (F,) or null. A thread for four numbers.
extern "C" __global__ void __launch_bounds__(256) sum_shares(
    const float* __restrict__ parts, const float* __restrict__ scale, const float* __restrict__ b,
    float* __restrict__ y, int count, long long size, int F, int relu)
{
    const long long i = 4 * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= size) return;
    const int f = (int)(i % F);
    Quad v = load4(parts + i), factor = {{1.f, 1.f, 1.f, 1.f}}, bias = {{0.f, 0.f, 0.f, 0.f}};
    for (int p = 1; p < count; ++p) {
        const Quad more = load4(parts + p * size + i);
        #pragma unroll
        for (int j = 0; j < 4; ++j) v.at[j] += more.at[j];
    }
    if (scale) factor = load4(scale + f);
    if (b) bias = load4(b + f);
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float z = v.at[j] * factor.at[j] + bias.at[j];
        v.at[j] = relu && z < 0.f ? 0.f : z;
    }
    store4(y + i, v);
}

extern "C" __global__ void __launch_bounds__(256) sum_parts(
    const float* __restrict__ parts, float* __restrict__ out, int count, int size)
{
    __shared__ double row_sum[8][32];
    const int i = blockIdx.x * 32 + threadIdx.x;
    double sum = 0;
    if (i < size)
        for (int p = threadIdx.y; p < count; p += 8) sum += parts[(long long)p * size + i];
    row_sum[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && i < size) {
        for (int r = 1; r < 8; ++r) sum += row_sum[r][threadIdx.x];
        out[i] = (float)sum;
    }
}
