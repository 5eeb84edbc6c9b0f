// Adam for all parameters of a net at once: they lie one behind the other in memory.
//
//     m += (1 - beta1) (g - m),   v += (1 - beta2) (g^2 - v)
//     p -= step m / (sqrt(v) / root + eps),   step = lr / (1 - beta1^t),  root = sqrt(1 - beta2^t)
//
// Kingma & Ba 2015. One pass reads four numbers and writes three; written with array expressions
// the same takes a dozen passes for each of the net's 82 parameters.

extern "C" __global__ void __launch_bounds__(256) adam(
    float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v,
    long long size, float beta1, float beta2, float step, float root, float eps, float decay)
{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    const float gradient = g[i] + decay * p[i];
    m[i] += (1.f - beta1) * (gradient - m[i]);
    v[i] += (1.f - beta2) * (gradient * gradient - v[i]);
    p[i] -= step * m[i] / (sqrtf(v[i]) / root + eps);
}
