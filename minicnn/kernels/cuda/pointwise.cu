// What is done to every number by itself: one thread each, nothing shared.

// y = max(x, 0), and whether x > 0; a NaN stays one.
extern "C" __global__ void __launch_bounds__(256) relu(
    const float* __restrict__ x, float* __restrict__ y, unsigned char* __restrict__ positive,
    long long size)
{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    y[i] = x[i] < 0.f ? 0.f : x[i];
    positive[i] = x[i] > 0.f;
}

// dx = dy where x > 0, else 0.
extern "C" __global__ void __launch_bounds__(256) relu_backward(
    const float* __restrict__ dy, const unsigned char* __restrict__ positive,
    float* __restrict__ dx, long long size)
{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) dx[i] = positive[i] ? dy[i] : 0.f;
}

// y = (pixel - mean) / scale: a byte a value travels to the GPU, and becomes a float there.
extern "C" __global__ void __launch_bounds__(256) normalise(
    const unsigned char* __restrict__ pixels, float* __restrict__ y, long long size,
    float mean, float scale)
{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) y[i] = ((float)pixels[i] - mean) / scale;
}
