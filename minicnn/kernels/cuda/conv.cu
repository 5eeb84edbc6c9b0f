// The kernels of convolve.cu in float32, and the weights of its adjoint.

CONV(conv_any, false, Tile<16, 4>)
CONV(conv_16, true, Tile<16, 4>)
CONV(conv_32, true, Tile<32, 4>)
CONV(conv_64, true, Tile<64, 8>)

// The small kernels of the adjoint, J = ceil(K / s) wide, for output channels c0 .. c0 + C - 1:
//     small[p][p'][j][j'][f][c] = w[k][k'][c0 + c][f],     k = (p + top) % s + s (J - 1 - j)
// and 0 for k >= K. w is (K, K, all, F).
extern "C" __global__ void __launch_bounds__(256) phase_weights(
    const float* __restrict__ w, float* __restrict__ small,
    int K, int all, int F, int c0, int C, int stride, int top, int left)
{
    const int J = (K + stride - 1) / stride, size = stride * stride * J * J * F * C;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    const int at = i, c = i % C;  i /= C;
    const int f = i % F;          i /= F;
    const int jx = i % J;         i /= J;
    const int jy = i % J;         i /= J;
    const int px = i % stride, py = i / stride;
    const int ky = (py + top) % stride + stride * (J - 1 - jy);
    const int kx = (px + left) % stride + stride * (J - 1 - jx);
    small[at] = ky < K && kx < K ? w[((ky * K + kx) * (long long)all + c0 + c) * F + f] : 0.f;
}
