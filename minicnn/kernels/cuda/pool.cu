// The largest value of each size x size area, and the way back to the pixel it came from.
//
//     y[n][oh][ow][c] = max over (i, j) of x[n][oh size + i][ow size + j][c]
//
// `winner` remembers i size + j in one byte. Areas do not overlap, so backward every pixel of dx
// asks whether it won, and no two threads write to one place. One thread for four channels;
// rows and columns that fill no whole area belong to none.

// The bytes of four channels, as read4 and write4 have floats.
struct __align__(4) Bytes { unsigned char at[4]; };

__device__ __forceinline__ Bytes read_bytes(const unsigned char* row, int c, int C) {
    Bytes v = {};
    if (C % 4 == 0) return *(const Bytes*)(row + c);
    #pragma unroll
    for (int j = 0; j < 4; ++j) if (c + j < C) v.at[j] = row[c + j];
    return v;
}

// The first of equals wins, as in reading order; a NaN wins over every number.
extern "C" __global__ void __launch_bounds__(256, 4) max_pool(
    const float* __restrict__ x, float* __restrict__ y, unsigned char* __restrict__ winner,
    int N, int H, int W, int C, int size)
{
    const int OH = H / size, OW = W / size, fours = (C + 3) / 4;
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)N * OH * OW * fours) return;
    const int c = 4 * (int)(i % fours), m = (int)(i / fours), ow = m % OW, oh = m / OW % OH, n = m / OW / OH;
    const float* corner = x + (((long long)n * H + oh * size) * W + ow * size) * C;
    Quad best = read4(corner, c, C);
    Bytes first = {};
    for (int i = 0; i < size; ++i)
        for (int j = 0; j < size; ++j) {
            const Quad v = read4(corner + ((long long)i * W + j) * C, c, C);
            #pragma unroll
            for (int k = 0; k < 4; ++k)
                if (v.at[k] > best.at[k] || (v.at[k] != v.at[k] && best.at[k] == best.at[k])) {
                    best.at[k] = v.at[k];
                    first.at[k] = (unsigned char)(i * size + j);
                }
        }
    write4(y + (long long)m * C, c, C, best);
    unsigned char* own = winner + (long long)m * C + c;
    if (C % 4 == 0) *(Bytes*)own = first;
    else
        #pragma unroll
        for (int k = 0; k < 4; ++k) if (c + k < C) own[k] = first.at[k];
}

// other: a second gradient of the same x, to be added; or null.
extern "C" __global__ void __launch_bounds__(256) max_pool_backward(
    const float* __restrict__ dy, const unsigned char* __restrict__ winner,
    const float* __restrict__ other, float* __restrict__ dx,
    int N, int H, int W, int C, int size)
{
    const int OH = H / size, OW = W / size, fours = (C + 3) / 4;
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)N * H * W * fours) return;
    const int c = 4 * (int)(i % fours), m = (int)(i / fours), w = m % W, h = m / W % H, n = m / W / H;
    const int oh = h / size, ow = w / size;
    Quad v = {{0.f, 0.f, 0.f, 0.f}};
    if (other) v = read4(other + (long long)m * C, c, C);
    if (oh < OH && ow < OW) {
        const long long area = (((long long)n * OH + oh) * OW + ow) * C;
        const Bytes won = read_bytes(winner + area, c, C);
        const Quad g = read4(dy + area, c, C);
        #pragma unroll
        for (int k = 0; k < 4; ++k) if (won.at[k] == h % size * size + w % size) v.at[k] += g.at[k];
    }
    write4(dx + (long long)m * C, c, C, v);
}
