// The weight gradient: every window, times the gradient of the pixel that came of it.
//
//     dw[k][f] = sum over m of window[m][k] dy[m][f],     m = (n, oh, ow),  k = (ky, kx, c)
//
// A small matrix whose every entry is a sum over all pixels of the batch. One block per piece of dw
// would leave most of the GPU idle, so the sum is split too ("split-K"): block z adds up the image
// rows z * rows .. + rows - 1 and writes a matrix of its own; sum_parts adds those, always in the
// same order, so that a run can be repeated to the bit.

template <class T, bool WHOLE>
__device__ __forceinline__ void convolve_dw(
    const float* __restrict__ x, const float* __restrict__ skip, const float* __restrict__ dy,
    float* __restrict__ parts, int rows, const Conv& s)
{
    __shared__ T tile;
    const int t = threadIdx.x, k0 = blockIdx.x * ROWS, f0 = blockIdx.y * T::COLS;
    const int k_end = s.K * s.K * (s.C + s.D);
    const int last = min((int)(blockIdx.z + 1) * rows, s.N * s.OH);  // image rows, over all images

    // This thread brings in k = k0 + 4 (t % 32) .. + 3, of pixels t / 32 + i STEP of every slice.
    const int STEP = T::THREADS / 32;
    Tap tap = {0, 0, 0};
    tap.advance(k0 + 4 * (t % 32), s.C + s.D, s.K);

    int r = blockIdx.z * rows, ow0 = 0;  // a slice is 16 pixels of image row r from ow0 on
    Quad next_a[T::QUADS_A], next_b[T::QUADS_B];
    auto fetch = [&]() {
        const int top = r % s.OH * s.stride - s.back_y;
        #pragma unroll
        for (int i = 0; i < T::QUADS_A; ++i) {
            const int ow = ow0 + t / 32 + i * STEP, left = ow * s.stride - s.back_x;
            const Window window = {r < last && ow < s.OW ? top : NONE, left,
                                   (r / s.OH * s.H + top) * s.W + left};
            next_a[i] = gather<WHOLE>(x, skip, s, window, tap);
        }
        #pragma unroll
        for (int i = 0; i < T::QUADS_B; ++i) {
            const int at = 4 * (t + i * T::THREADS), ow = ow0 + at / T::COLS;
            const float* pixels = dy + (long long)r * s.OW * s.F;
            next_b[i] = piece<WHOLE>(pixels, r < last ? ow : s.OW, s.OW, f0 + at % T::COLS, s.F);
        }
        ow0 += SLICE;
        if (ow0 >= s.OW) { ow0 = 0; ++r; }
    };

    float sum[T::TM][T::TN] = {};
    const int slices = (last - r) * ((s.OW + SLICE - 1) / SLICE);
    fetch();
    for (int i = 0; i < slices; ++i) {
        #pragma unroll
        for (int i = 0; i < T::QUADS_A; ++i) tile.put_rows(t / 32 + i * STEP, 4 * (t % 32), next_a[i]);
        #pragma unroll
        for (int i = 0; i < T::QUADS_B; ++i) {
            const int at = 4 * (t + i * T::THREADS);
            tile.put_b(at / T::COLS, at % T::COLS, next_b[i]);
        }
        __syncthreads();
        fetch();
        tile.multiply(t, sum);
        __syncthreads();
    }

    float* out = parts + (long long)blockIdx.z * k_end * s.F;
    #pragma unroll
    for (int i = 0; i < T::TM; ++i)
        #pragma unroll
        for (int j = 0; j < T::TN; j += 4) {
            const Quad v = {{sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]}};
            const int k = k0 + T::row(t, i);
            if (k < k_end) put<WHOLE>(out, k, f0 + T::col(t, j), s.F, v);
        }
}

#define CONV_DW(NAME, WHOLE, ...)                                                         \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__::THREADS, __VA_ARGS__::BLOCKS) \
    NAME(const float* __restrict__ x, const float* __restrict__ skip,                     \
         const float* __restrict__ dy, float* __restrict__ parts, int rows, Conv s)       \
    { convolve_dw<__VA_ARGS__, WHOLE>(x, skip, dy, parts, rows, s); }
