// Losses of a mask of logits x against labels y (0 or 1), each with its gradient.
//
//     p = 1 / (1 + exp(-x)),   v = 1 where the pixel counts (everywhere, if valid is null)
//     BCE      sum(v ((1 - y) x + (1 + (w - 1) y) log(1 + exp(-x)))) / sum(v)
//     Dice     1 - (2 sum(v p y) + s) / (sum(v p) + sum(v y) + s)
//     Jaccard  1 - (sum(v p y) + s) / (sum(v p) + sum(v y) - sum(v p y) + s)
//
// One pass takes the five sums, sum_parts adds up the blocks', a second pass writes the gradient.

enum { BCE, COUNT, BOTH, P, Y, SUMS };
enum { LOSS_BCE, LOSS_DICE, LOSS_JACCARD };

const int THREADS = 256;

__device__ __forceinline__ float sigmoid(float x) {  // no overflow at either end
    const float e = expf(-fabsf(x));
    return (x >= 0.f ? 1.f : e) / (1.f + e);
}

// parts (blocks, SUMS), each over `per_block` pixels.
extern "C" __global__ void __launch_bounds__(THREADS) loss_sums(
    const float* __restrict__ logits, const float* __restrict__ labels,
    const float* __restrict__ valid, float* __restrict__ parts,
    long long size, int per_block, float pos_weight)
{
    __shared__ float all[SUMS][THREADS];
    float sums[SUMS] = {};
    const long long start = (long long)blockIdx.x * per_block;
    const long long end = min(start + per_block, size);
    for (long long i = start + threadIdx.x; i < end; i += THREADS) {
        const float v = valid ? valid[i] : 1.f, x = v ? logits[i] : 0.f;  // 0 times NaN is NaN
        const float y = labels[i], p = sigmoid(x);
        const float softplus = log1pf(expf(-fabsf(x))) + fmaxf(-x, 0.f);
        sums[BCE] += v * ((1.f - y) * x + (1.f + (pos_weight - 1.f) * y) * softplus);
        sums[COUNT] += v;
        sums[BOTH] += v * p * y;
        sums[P] += v * p;
        sums[Y] += v * y;
    }
    #pragma unroll
    for (int k = 0; k < SUMS; ++k) all[k][threadIdx.x] = sums[k];
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            #pragma unroll
            for (int k = 0; k < SUMS; ++k) all[k][threadIdx.x] += all[k][threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x < SUMS) parts[blockIdx.x * (long long)SUMS + threadIdx.x] = all[threadIdx.x][0];
}

// totals (SUMS,) -> loss (1,) and dlogits. `weight` is w for BCE, s for the other two.
extern "C" __global__ void __launch_bounds__(THREADS) loss_gradient(
    const float* __restrict__ logits, const float* __restrict__ labels,
    const float* __restrict__ valid, const float* __restrict__ totals,
    float* __restrict__ loss, float* __restrict__ dlogits, long long size, int kind, float weight)
{
    const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= size) return;
    const float y = labels[i], v = valid ? valid[i] : 1.f, p = sigmoid(v ? logits[i] : 0.f);
    float value, slope;  // of the loss; d loss / d logit
    if (kind == LOSS_BCE) {
        const float count = fmaxf(totals[COUNT], 1.f);
        value = totals[BCE] / count;
        slope = ((1.f - y) * p - weight * y * (1.f - p)) / count;
    } else {
        const bool dice = kind == LOSS_DICE;
        const float both = totals[BOTH], total = totals[P] + totals[Y];
        const float above = (dice ? 2.f * both : both) + weight;
        const float below = (dice ? total : total - both) + weight, ratio = above / below;
        value = 1.f - ratio;
        slope = (dice ? ratio - 2.f * y : ratio * (1.f - y) - y) / below * p * (1.f - p);
    }
    if (i == 0) loss[0] = value;
    dlogits[i] = v * slope;
}
