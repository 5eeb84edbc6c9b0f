// The largest value of each size x size area, and the way back to the pixel it came from.
//
//     y[n][oh][ow][c] = max over (i, j) of x[n][oh size + i][ow size + j][c]
//
// `winner` remembers i size + j in one byte. Areas do not overlap, so backward every pixel of dx
// asks whether it won, and no two threads write to one place. One thread per number written;
// rows and columns that fill no whole area belong to none.

// The first of equals wins, as in reading order; a NaN wins over every number.
extern "C" __global__ void __launch_bounds__(256) max_pool(
    const float* __restrict__ x, float* __restrict__ y, unsigned char* __restrict__ winner,
    int N, int H, int W, int C, int size)
{
    const int OH = H / size, OW = W / size;
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)N * OH * OW * C) return;
    const int c = (int)(at % C), m = (int)(at / C), ow = m % OW, oh = m / OW % OH, n = m / OW / OH;
    const float* corner = x + (((long long)n * H + oh * size) * W + ow * size) * C + c;
    float best = corner[0];
    int first = 0;
    for (int i = 0; i < size; ++i)
        for (int j = 0; j < size; ++j) {
            const float v = corner[((long long)i * W + j) * C];
            if (v > best || (v != v && best == best)) { best = v; first = i * size + j; }
        }
    y[at] = best;
    winner[at] = (unsigned char)first;
}

// other: a second gradient of the same x, to be added; or null.
extern "C" __global__ void __launch_bounds__(256) max_pool_backward(
    const float* __restrict__ dy, const unsigned char* __restrict__ winner,
    const float* __restrict__ other, float* __restrict__ dx,
    int N, int H, int W, int C, int size)
{
    const int OH = H / size, OW = W / size;
    const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)N * H * W * C) return;
    const int c = (int)(at % C), m = (int)(at / C), w = m % W, h = m / W % H, n = m / W / H;
    const int oh = h / size, ow = w / size;
    float v = other ? other[at] : 0.f;
    if (oh < OH && ow < OW) {
        const long long area = (((long long)n * OH + oh) * OW + ow) * C + c;
        if (winner[area] == h % size * size + w % size) v += dy[area];
    }
    dx[at] = v;
}
