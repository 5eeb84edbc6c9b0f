// Convolution as a matrix product whose left matrix is never stored ("implicit GEMM").
//
//     y[m][f] = b[f] + sum over k of window[m][k] w[k][f],     m = (n, oh, ow),  k = (ky, kx, c)
//
// minicnn.ops unfolds the windows into a matrix 16 times the size of the image (for a 4 x 4
// kernel) and multiplies it by the filters. Here a block copies the windows of its 128 output
// pixels to shared memory straight from the image, 16 columns of the matrix at a time.
//
// The same kernel is the adjoint, which serves as input gradient and as transposed convolution.
// Painting windows s pixels apart is, for the output pixels (s q + p, s q' + p') of one phase
// (p, p'), a convolution with every s-th row and column of the kernel, turned round.
// `phase_weights` cuts the kernel into these s * s small ones; blockIdx.z says which one a block
// works with. Stride 1 has one phase, and its kernel is the whole one turned round.
//
// In the deep levels there are few pixels and long sums: too few blocks to fill a GPU. There blocks share
// a sum ("split-K"), each writes its part of y, and `sum_shares` of reduce.cu adds them up.

// For batch norm: of the block's outputs in each channel, without the bias, their sum and the
// squared distances to the block's own mean. Adding these up loses no digits, where a sum of
// squares would (Chan, Golub, LeVeque 1979). moments is (blocks, 2, F).
template <class T>
__device__ __forceinline__ void block_moments(
    T& tile, const float (&sum)[T::TM][T::TN], int t, int rows, int f0, int F, float* moments)
{
    float* part = &tile.a[0][0];  // (ROWS / TM, COLS): no longer needed for the product
    float mean[T::TN] = {};
    for (int pass = 0; pass < 2; ++pass) {
        #pragma unroll
        for (int j = 0; j < T::TN; ++j) {
            float own = 0.f;
            #pragma unroll
            for (int i = 0; i < T::TM; ++i) {
                const float distance = sum[i][j] - mean[j];
                if (T::row(t, i) < rows) own += pass == 0 ? distance : distance * distance;
            }
            part[T::group(t) * T::COLS + T::col(t, j)] = own;
        }
        __syncthreads();
        #pragma unroll
        for (int j = 0; j < T::TN; ++j) {
            const int f = f0 + T::col(t, j);
            float total = 0.f;
            #pragma unroll 1  // else ptxas holds so many sums that it spills, from sm_100 on
            for (int r = 0; r < ROWS / T::TM; ++r) total += part[r * T::COLS + T::col(t, j)];
            mean[j] = total / rows;
            if (T::group(t) == 0 && f < F) moments[(blockIdx.x * 2LL + pass) * F + f] = total;
        }
        __syncthreads();
    }
}

// scale (F,) multiplies the sums before the bias b is added; moments: see above. Any may be null.
// T is the kind of tile that makes the products.
template <class T, bool WHOLE>
__device__ __forceinline__ void convolve(
    const float* __restrict__ x, const float* __restrict__ skip, const float* __restrict__ w,
    const float* __restrict__ scale, const float* __restrict__ b,
    float* __restrict__ y, float* __restrict__ moments, const Conv& s)
{
    __shared__ T tile;
    const int t = threadIdx.x, f0 = blockIdx.y * T::COLS;
    const int channels = s.C + s.D, k_end = s.K * s.K * channels;
    const int phase = blockIdx.z % (s.phases * s.phases), part = blockIdx.z / (s.phases * s.phases);
    const int py = phase / s.phases, px = phase % s.phases;
    const int k_first = part * s.share, k_last = min(k_end, k_first + s.share);
    const int QH = (s.OH - py + s.phases - 1) / s.phases;  // outputs of this phase
    const int QW = (s.OW - px + s.phases - 1) / s.phases;
    const int M = s.N * QH * QW, m0 = blockIdx.x * ROWS;
    if (m0 >= M) return;  // the whole block: phases differ by a row or a column
    const float* weights = w + (long long)phase * k_end * s.F;

    // This thread brings in k = 4 (t % 4) .. + 3 of every slice, for windows t / 4 + i STEP.
    const int STEP = T::THREADS / 4;
    Window windows[T::QUADS_A];
    #pragma unroll
    for (int i = 0; i < T::QUADS_A; ++i) {
        const int m = m0 + t / 4 + i * STEP, q = m / QW;
        const int top = start(q % QH, py, s.stride, s.phases, s.ahead_y, s.back_y);
        const int left = start(m % QW, px, s.stride, s.phases, s.ahead_x, s.back_x);
        windows[i] = {m < M ? top : NONE, left, (q / QH * s.H + top) * s.W + left};
    }
    Tap tap = {0, 0, 0};
    tap.advance(k_first + 4 * (t % 4), channels, s.K);

    Quad next_a[T::QUADS_A], next_b[T::QUADS_B];
    auto fetch = [&](int k0) {  // from global memory to registers
        #pragma unroll
        for (int i = 0; i < T::QUADS_A; ++i) next_a[i] = gather<WHOLE>(x, skip, s, windows[i], tap);
        #pragma unroll
        for (int i = 0; i < T::QUADS_B; ++i) {
            const int at = 4 * (t + i * T::THREADS);
            next_b[i] = piece<WHOLE>(weights, k0 + at / T::COLS, k_end, f0 + at % T::COLS, s.F);
        }
        tap.advance(SLICE, channels, s.K);
    };

    float sum[T::TM][T::TN] = {};
    fetch(k_first);
    for (int k0 = k_first; k0 < k_last; k0 += SLICE) {
        #pragma unroll
        for (int i = 0; i < T::QUADS_A; ++i) tile.put_a(4 * (t % 4), t / 4 + i * STEP, next_a[i]);
        #pragma unroll
        for (int i = 0; i < T::QUADS_B; ++i) {
            const int at = 4 * (t + i * T::THREADS);
            tile.put_b(at / T::COLS, at % T::COLS, next_b[i]);
        }
        __syncthreads();
        fetch(k0 + SLICE);  // the next slice is on its way while this one is multiplied
        tile.multiply(t, sum);
        __syncthreads();
    }

    if (moments) block_moments<T>(tile, sum, t, min(ROWS, M - m0), f0, s.F, moments);

    #pragma unroll
    for (int j = 0; j < T::TN; j += 4) {
        const int f = f0 + T::col(t, j);
        Quad bias = {{0.f, 0.f, 0.f, 0.f}}, factor = {{1.f, 1.f, 1.f, 1.f}};
        if (b) bias = piece<WHOLE>(b, 0, 1, f, s.F);
        if (scale) factor = piece<WHOLE>(scale, 0, 1, f, s.F);
        #pragma unroll
        for (int i = 0; i < T::TM; ++i) {
            const int m = m0 + T::row(t, i), q = m / QW;
            if (m >= M) break;
            Quad v;
            #pragma unroll
            for (int l = 0; l < 4; ++l) {
                const float z = sum[i][j + l] * factor.at[l] + bias.at[l];
                v.at[l] = s.relu && z < 0.f ? 0.f : z;  // a NaN stays one
            }
            const long long oh = q % QH * s.phases + py, ow = m % QW * s.phases + px;
            put<WHOLE>(y, ((q / QH + part * s.N) * s.OH + oh) * s.OW + ow, f, s.F, v);
        }
    }
}

// BLOCKS is how many a multiprocessor has to hold at once: left to itself, ptxas spills to fit more.
#define CONV(NAME, WHOLE, ...)                                                                    \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__::THREADS, __VA_ARGS__::BLOCKS)       \
    NAME(const float* __restrict__ x, const float* __restrict__ skip,                             \
         const float* __restrict__ w, const float* __restrict__ scale,                            \
         const float* __restrict__ b, float* __restrict__ y, float* __restrict__ moments, Conv s) \
    { convolve<__VA_ARGS__, WHOLE>(x, skip, w, scale, b, y, moments, s); }
