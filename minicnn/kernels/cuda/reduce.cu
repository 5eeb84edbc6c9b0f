// A sum over the first axis:
//
//     out[i] = sum over p of parts[p][i]
//
// Blocks that share a sum each write their part, and this kernel adds the parts: in float64, and
// always in the same order, which atomic additions would not. Threads beside each other read
// numbers beside each other; the 8 rows of a block share the parts between them.

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
