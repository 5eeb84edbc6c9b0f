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

struct Pair { Quad a, b; };  // of four channels

__device__ __forceinline__ void add(Quad& to, const Quad& v) {
    #pragma unroll
    for (int j = 0; j < 4; ++j) to.at[j] += v.at[j];
}

// Adds up term(m, c) over the block's `rows` pixels from m0 on, for each of the block's fours of
// channels (THREADS fours at most; blockIdx.y says which), with neighbours in memory for neighbours among
// the threads. Thread i < fours returns with the sums of channels 4 (blockIdx.y * THREADS + i) .. + 3.
template <class Term>
__device__ __forceinline__ Pair block_sums(int M, int C, int rows, Term term) {
    __shared__ Pair all[THREADS];
    const int q0 = blockIdx.y * THREADS, fours = min((C + 3) / 4 - q0, THREADS), t = threadIdx.x;
    const int across = THREADS / fours * fours;  // threads that fill whole pixels
    Pair sum = {};
    const long long m0 = (long long)blockIdx.x * rows;
    const int end = (int)min(m0 + rows, (long long)M);
    if (t < across)
        for (int m = (int)m0 + t / fours; m < end; m += THREADS / fours) {
            const Pair p = term(m, 4 * (q0 + t % fours));
            add(sum.a, p.a);
            add(sum.b, p.b);
        }
    all[t] = sum;
    __syncthreads();
    if (t < fours)
        for (int i = t + fours; i < across; i += fours) { add(sum.a, all[i].a); add(sum.b, all[i].b); }
    __syncthreads();
    return sum;
}

// parts (blocks, C): sums of each channel.
extern "C" __global__ void __launch_bounds__(THREADS) channel_sums(
    const float* __restrict__ x, float* __restrict__ parts, int M, int C, int rows)
{
    const Pair sum = block_sums(M, C, rows, [&](int m, int c) {
        return Pair{read4(x + (long long)m * C, c, C), {}};
    });
    const int c = 4 * (blockIdx.y * THREADS + threadIdx.x);
    if (c < C) write4(parts + (long long)blockIdx.x * C, c, C, sum.a);
}

// moments (blocks, 2, C): sums, and squared distances to the block's own mean, as in convolve.cu.
extern "C" __global__ void __launch_bounds__(THREADS) channel_moments(
    const float* __restrict__ x, float* __restrict__ moments, int M, int C, int rows)
{
    __shared__ Quad means[THREADS];
    const int own = 4 * (blockIdx.y * THREADS + threadIdx.x);
    const int count = min(rows, M - (int)blockIdx.x * rows);
    float* out = moments + blockIdx.x * 2LL * C;
    Pair sum = block_sums(M, C, rows, [&](int m, int c) {
        return Pair{read4(x + (long long)m * C, c, C), {}};
    });
    #pragma unroll
    for (int j = 0; j < 4; ++j) means[threadIdx.x].at[j] = sum.a.at[j] / count;
    if (own < C) write4(out, own, C, sum.a);
    __syncthreads();
    sum = block_sums(M, C, rows, [&](int m, int c) {
        const Quad v = read4(x + (long long)m * C, c, C), mean = means[c / 4 % THREADS];
        Quad squares;
        #pragma unroll
        for (int j = 0; j < 4; ++j) squares.at[j] = (v.at[j] - mean.at[j]) * (v.at[j] - mean.at[j]);
        return Pair{squares, {}};
    });
    if (own < C) write4(out + C, own, C, sum.a);
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

// y = scale z + shift, and with `relu` no less than 0 (a NaN stays one). A thread for four channels.
extern "C" __global__ void __launch_bounds__(THREADS) bn_apply(
    const float* __restrict__ z, const float* __restrict__ norm, float* __restrict__ y,
    int M, int C, int relu)
{
    const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    const int fours = (C + 3) / 4, c = 4 * (int)(i % fours);
    const long long m = i / fours;
    if (m >= M) return;
    const Quad scale = read4(norm + SCALE * C, c, C), shift = read4(norm + SHIFT * C, c, C);
    Quad v = read4(z + m * C, c, C);
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        v.at[j] = scale.at[j] * v.at[j] + shift.at[j];
        if (relu && v.at[j] < 0.f) v.at[j] = 0.f;
    }
    write4(y + m * C, c, C, v);
}

// What comes through the ReLU of the gradient dy, and the normalised z.
__device__ __forceinline__ Pair through_relu(
    const Quad& dy, const Quad& z, const float* norm, int C, int c, int relu)
{
    const Quad scale = read4(norm + SCALE * C, c, C), shift = read4(norm + SHIFT * C, c, C);
    const Quad mean = read4(norm + MEAN * C, c, C), inverse_std = read4(norm + INVERSE_STD * C, c, C);
    Pair g;
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        const bool passes = !relu || scale.at[j] * z.at[j] + shift.at[j] > 0.f;
        g.a.at[j] = passes ? dy.at[j] : 0.f;
        g.b.at[j] = (z.at[j] - mean.at[j]) * inverse_std.at[j];
    }
    return g;
}

// parts (blocks, 2, C): sum g, which is dbeta, and sum(g zhat), which is dgamma.
extern "C" __global__ void __launch_bounds__(THREADS) bn_backward_sums(
    const float* __restrict__ dy, const float* __restrict__ z, const float* __restrict__ norm,
    float* __restrict__ parts, int M, int C, int rows, int relu)
{
    const Pair sum = block_sums(M, C, rows, [&](int m, int c) {
        const long long at = (long long)m * C;
        Pair g = through_relu(read4(dy + at, c, C), read4(z + at, c, C), norm, C, c, relu);
        #pragma unroll
        for (int j = 0; j < 4; ++j) g.b.at[j] *= g.a.at[j];
        return g;
    });
    const int c = 4 * (blockIdx.y * THREADS + threadIdx.x);
    if (c >= C) return;
    write4(parts + blockIdx.x * 2LL * C, c, C, sum.a);
    write4(parts + (blockIdx.x * 2LL + 1) * C, c, C, sum.b);
}

// sums (2, C) as above, over all blocks. Statistics that are not the batch's own are constants,
// and only the first term of dz is left. db, if not null, becomes 0: the batch's mean takes any bias
// out again, and rounding must not say otherwise. A thread for four channels.
extern "C" __global__ void __launch_bounds__(THREADS) bn_backward_apply(
    const float* __restrict__ dy, const float* __restrict__ z, const float* __restrict__ norm,
    const float* __restrict__ sums, float* __restrict__ dz, float* __restrict__ db,
    int M, int C, int relu, int from_batch)
{
    const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    const int fours = (C + 3) / 4, c = 4 * (int)(i % fours);
    const long long m = i / fours;
    if (m >= M) return;
    const Pair g = through_relu(read4(dy + m * C, c, C), read4(z + m * C, c, C), norm, C, c, relu);
    const Quad scale = read4(norm + SCALE * C, c, C);
    Quad v = g.a;
    if (from_batch) {
        const Quad sum = read4(sums, c, C), sum_zhat = read4(sums + C, c, C);
        #pragma unroll
        for (int j = 0; j < 4; ++j) v.at[j] -= (sum.at[j] + g.b.at[j] * sum_zhat.at[j]) / M;
    }
    #pragma unroll
    for (int j = 0; j < 4; ++j) v.at[j] *= scale.at[j];
    write4(dz + m * C, c, C, v);
    if (db && m == 0) write4(db, c, C, Quad{});
}
