// The windows of a convolution, read where they lie: row m of the matrix that minicnn.ops unfolds,
// found without storing it. This text goes before convolve.cu and
// convolve_dw.cu.
//
//     window[m][k] = image[n][y(oh) + ky][x(ow) + kx][c],     m = (n, oh, ow),  k = (ky, kx, c)
//
// The image's channels are those of x, then those of skip: concatenation without a copy.

struct Conv {
    int N, H, W;         // images of H x W pixels
    int C, D;            // channels of x and of skip (D = 0: no skip)
    int K, stride;       // windows of K x K pixels, `stride` apart
    int F, OH, OW;       // the output (N, OH, OW, F)
    int phases;          // output pixels `phases` apart share a kernel; 1 in a plain convolution
    int ahead_y, ahead_x, back_y, back_x;  // where a window starts, see `start`
    int relu;            // 1: negative outputs become 0
    int share;           // columns k of the matrix that a block adds up; others add the rest
};

// The first input row (or column) in the window of output row phases * q + phase.
__device__ __forceinline__ int start(int q, int phase, int stride, int phases, int ahead, int back) {
    return q * stride + (phase + ahead) / phases - back;
}

struct Window { int y, x, first; };  // its first pixel, and that one's number; y = NONE: no window
const int NONE = -(1 << 30);

// A column k = (ky, kx, c) of the matrix. Steps are taken without a division.
struct Tap {
    int ky, kx, c;

    __device__ __forceinline__ void advance(int step, int channels, int K) {
        for (c += step; c >= channels; c -= channels)
            if (++kx == K) { kx = 0; ++ky; }
    }
};

// The kernels are compiled for channels in fours (WHOLE), where four neighbours in a row of any of
// the matrices lie in memory side by side, and once for any number of channels.

// window[k .. k + 3]; zero outside the image and after the last k.
template <bool WHOLE>
__device__ __forceinline__ Quad gather(
    const float* x, const float* skip, const Conv& s, const Window& window, Tap tap)
{
    Quad v = {{0.f, 0.f, 0.f, 0.f}};
    #pragma unroll
    for (int j = 0; j < (WHOLE ? 1 : 4); ++j) {
        const unsigned y = window.y + tap.ky, xx = window.x + tap.kx;
        if (tap.ky < s.K && y < (unsigned)s.H && xx < (unsigned)s.W) {
            const long long pixel = window.first + tap.ky * s.W + tap.kx;
            const float* p = tap.c < s.C ? x + pixel * s.C + tap.c : skip + pixel * s.D + tap.c - s.C;
            if (WHOLE) v = load4(p);
            else v.at[j] = *p;
        }
        if (!WHOLE) tap.advance(1, s.C + s.D, s.K);
    }
    return v;
}

// matrix[row][col .. col + 3] of a matrix (rows, cols); zero outside.
template <bool WHOLE>
__device__ __forceinline__ Quad piece(const float* matrix, int row, int rows, int col, int cols) {
    Quad v = {{0.f, 0.f, 0.f, 0.f}};
    if (row >= rows || col >= cols) return v;
    const float* p = matrix + (long long)row * cols + col;
    if (WHOLE) v = load4(p);
    else
        #pragma unroll
        for (int j = 0; j < 4; ++j) if (col + j < cols) v.at[j] = p[j];
    return v;
}

// The other way: puts v where `piece` would read it.
template <bool WHOLE>
__device__ __forceinline__ void put(float* matrix, long long row, int col, int cols, const Quad& v) {
    float* p = matrix + row * cols + col;
    #pragma unroll
    for (int j = 0; j < (WHOLE ? 1 : 4); ++j)
        if (col + j < cols) {
            if (WHOLE) store4(p, v);
            else p[j] = v.at[j];
        }
}
