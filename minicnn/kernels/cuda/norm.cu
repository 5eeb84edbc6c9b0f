// Batch norm with the ReLU behind it, in as few passes over the image as can be.
//
//     y = relu(gamma (z - mean) / sqrt(var + eps) + beta) = relu(scale z + shift)
//     dz = scale (g - (sum g + zhat sum(g zhat)) / M),   g = dy where y > 0,   zhat = (z - mean) / std
//
// Forward: the convolution has taken its sums while z was in its registers; they are put together
// here, then one pass makes y. Backward: one pass for the two sums, one for dz. Whether y was
// positive is computed again from z, so y is not kept for it.
//
// x, y, z are (M, C): pixels by channels. `norm` is (6, C), these rows:

enum { MEAN, VAR, INVERSE_STD, SCALE, SHIFT, FOLDED };

const int THREADS = 256;

struct Pair { float a, b; };

// Adds up term(m, c) over the block's `rows` pixels from m0 on, for each of the block's channels
// (THREADS of them at most; blockIdx.y says which), with neighbours in memory for neighbours among
// the threads. Thread i < channels returns with the sums of channel blockIdx.y * THREADS + i.
template <class Term>
__device__ __forceinline__ Pair block_sums(int M, int C, int rows, Term term) {
    __shared__ Pair all[THREADS];
    const int c0 = blockIdx.y * THREADS, channels = min(C - c0, THREADS), t = threadIdx.x;
    const int across = THREADS / channels * channels;  // threads that fill whole pixels
    Pair sum = {0.f, 0.f};
    const long long m0 = (long long)blockIdx.x * rows;
    const int end = (int)min(m0 + rows, (long long)M);
    if (t < across)
        for (int m = (int)m0 + t / channels; m < end; m += THREADS / channels) {
            const Pair p = term(m, c0 + t % channels);
            sum.a += p.a;
            sum.b += p.b;
        }
    all[t] = sum;
    __syncthreads();
    if (t < channels)
        for (int i = t + channels; i < across; i += channels) { sum.a += all[i].a; sum.b += all[i].b; }
    __syncthreads();
    return sum;
}

// parts (blocks, C): sums of each channel.
extern "C" __global__ void __launch_bounds__(THREADS) channel_sums(
    const float* __restrict__ x, float* __restrict__ parts, int M, int C, int rows)
{
    const Pair sum = block_sums(M, C, rows, [&](int m, int c) { return Pair{x[(long long)m * C + c], 0.f}; });
    const int c = blockIdx.y * THREADS + threadIdx.x;
    if (c < C) parts[(long long)blockIdx.x * C + c] = sum.a;
}

// moments (blocks, 2, C): sums, and squared distances to the block's own mean, as in convolve.cu.
extern "C" __global__ void __launch_bounds__(THREADS) channel_moments(
    const float* __restrict__ x, float* __restrict__ moments, int M, int C, int rows)
{
    __shared__ float means[THREADS];
    const int c = blockIdx.y * THREADS + threadIdx.x, count = min(rows, M - (int)blockIdx.x * rows);
    float* out = moments + blockIdx.x * 2LL * C + c;
    Pair sum = block_sums(M, C, rows, [&](int m, int c) { return Pair{x[(long long)m * C + c], 0.f}; });
    means[threadIdx.x] = sum.a / count;
    if (c < C) out[0] = sum.a;
    __syncthreads();
    sum = block_sums(M, C, rows, [&](int m, int c) {
        const float distance = x[(long long)m * C + c] - means[c % THREADS];
        return Pair{distance * distance, 0.f};
    });
    if (c < C) out[C] = sum.a;
}

__device__ double block_sum(double own) {
    __shared__ double all[THREADS];
    all[threadIdx.x] = own;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) all[threadIdx.x] += all[threadIdx.x + half];
        __syncthreads();
    }
    const double total = all[0];
    __syncthreads();
    return total;
}

// From the moments of all blocks (of `rows` pixels each, the last one of what is left) to norm.
// One block per channel. bias (C,) is what the convolution added after its moments were taken, or
// null. moments null: the statistics are `mean` and `var` (C,). FOLDED = SHIFT + bias SCALE, so
// that relu(SCALE z + FOLDED) of a convolution z without bias is all there is to do in inference.
extern "C" __global__ void __launch_bounds__(THREADS, 4) bn_statistics(
    const float* __restrict__ moments, const float* __restrict__ bias,
    const float* __restrict__ mean, const float* __restrict__ var,
    const float* __restrict__ gamma, const float* __restrict__ beta,
    float* __restrict__ norm, int M, int C, int rows, float eps)
{
    const int c = blockIdx.x, blocks = (M + rows - 1) / rows;
    const float b = bias ? bias[c] : 0.f;
    float center = moments ? 0.f : mean[c], spread = moments ? 0.f : var[c];
    if (moments) {
        double sum = 0, squares = 0;
        for (int i = threadIdx.x; i < blocks; i += THREADS) sum += moments[i * 2LL * C + c];
        const double middle = block_sum(sum) / M;
        for (int i = threadIdx.x; i < blocks; i += THREADS) {
            const int count = min(rows, M - i * rows);
            const double off = moments[i * 2LL * C + c] / count - middle;
            squares += moments[(i * 2LL + 1) * C + c] + count * off * off;
        }
        center = (float)(middle + b);
        spread = (float)(block_sum(squares) / M);
    }
    if (threadIdx.x > 0) return;
    const float inverse_std = 1.f / sqrtf(spread + eps), scale = gamma[c] * inverse_std;
    const float shift = beta[c] - center * scale;
    norm[MEAN * C + c] = center;
    norm[VAR * C + c] = spread;
    norm[INVERSE_STD * C + c] = inverse_std;
    norm[SCALE * C + c] = scale;
    norm[SHIFT * C + c] = shift;
    norm[FOLDED * C + c] = shift + b * scale;
}

// The running averages of the mean and the variance, (C,) each, moved by `share` towards the
// batch's; `unbias` is M / (M - 1).
extern "C" __global__ void __launch_bounds__(THREADS) bn_running(
    float* __restrict__ mean, float* __restrict__ var, const float* __restrict__ batch_mean,
    const float* __restrict__ batch_var, int C, float share, float unbias)
{
    const int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= C) return;
    mean[c] += share * (batch_mean[c] - mean[c]);
    var[c] += share * (unbias * batch_var[c] - var[c]);
}

// y = scale z + shift, and with `relu` no less than 0 (a NaN stays one).
extern "C" __global__ void __launch_bounds__(THREADS) bn_apply(
    const float* __restrict__ z, const float* __restrict__ norm, float* __restrict__ y,
    int M, int C, int relu)
{
    const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (long long)M * C) return;
    const int c = (int)(i % C);
    const float v = norm[SCALE * C + c] * z[i] + norm[SHIFT * C + c];
    y[i] = relu && v < 0.f ? 0.f : v;
}

// What comes through the ReLU of the gradient dy, and the normalised z.
__device__ __forceinline__ Pair through_relu(float dy, float z, const float* norm, int C, int c, int relu) {
    const bool passes = !relu || norm[SCALE * C + c] * z + norm[SHIFT * C + c] > 0.f;
    return {passes ? dy : 0.f, (z - norm[MEAN * C + c]) * norm[INVERSE_STD * C + c]};
}

// parts (blocks, 2, C): sum g, which is dbeta, and sum(g zhat), which is dgamma.
extern "C" __global__ void __launch_bounds__(THREADS) bn_backward_sums(
    const float* __restrict__ dy, const float* __restrict__ z, const float* __restrict__ norm,
    float* __restrict__ parts, int M, int C, int rows, int relu)
{
    const Pair sum = block_sums(M, C, rows, [&](int m, int c) {
        const long long i = (long long)m * C + c;
        const Pair g = through_relu(dy[i], z[i], norm, C, c, relu);
        return Pair{g.a, g.a * g.b};
    });
    const int c = blockIdx.y * THREADS + threadIdx.x;
    if (c >= C) return;
    parts[blockIdx.x * 2LL * C + c] = sum.a;
    parts[(blockIdx.x * 2LL + 1) * C + c] = sum.b;
}

// sums (2, C) as above, over all blocks. Statistics that are not the batch's own are constants,
// and only the first term of dz is left.
extern "C" __global__ void __launch_bounds__(THREADS) bn_backward_apply(
    const float* __restrict__ dy, const float* __restrict__ z, const float* __restrict__ norm,
    const float* __restrict__ sums, float* __restrict__ dz,
    int M, int C, int relu, int from_batch)
{
    const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (long long)M * C) return;
    const int c = (int)(i % C);
    const Pair g = through_relu(dy[i], z[i], norm, C, c, relu);
    const float moved = from_batch ? (sums[c] + g.b * sums[C + c]) / M : 0.f;
    dz[i] = norm[SCALE * C + c] * (g.a - moved);
}
