// Muon for all kernels of a net in 19 launches: the steps of minicnn.optim.Muon, each for all of them.
//
//     m += (1 - momentum) (g - m),   u = g + momentum (m - g)
//     A = u'u / |u|^2,   P = I
//     five times:  Q = a I + b A + c A A,   P = P Q,   A = Q A Q
//     p -= lr |p| / sqrt(n) / |u| u P,   then p is scaled back to its length
//
// Where u is (rows, n), A, P and Q are (n, n), n at most 256. As cuBLAS and CuPy have it that is some 60
// launches for each kernel, of which the net has 22, and all of them wait for the host to launch them.
// All sums are taken in the same order every time.

const int THREADS = 256, MOST = 32;
const int SHARE = 512;  // rows of u that a block adds up in a part of u'u

struct Kernels {
    float* p[MOST];
    const float* g[MOST];
    float* m[MOST];
    const float* length[MOST];
    int rows[MOST], cols[MOST];  // cols in fours, no more than rows
    int u[MOST], small[MOST];    // where in `work` u lies, and the small matrices
    int tile[MOST];              // the first of its tiles of 128 x 64
    int first[MOST];             // the block that begins with it
    int count;
};

enum { A, Q, T, P, NEXT, PARTS };  // the small matrices; `work` begins with |u|^2 of each kernel

typedef Tile<64, 8> Sums;

__device__ __forceinline__ float* matrix(const Kernels& t, float* work, int row, int which) {
    return work + t.small[row] + (long long)which * t.cols[row] * t.cols[row];
}

__device__ __forceinline__ int tiles(int size, int each) { return (size + each - 1) / each; }

// sum = (left right)[i][j] over the terms from k0 to k1, for this thread's i and j, of the block's tile
// from (i0, j0) on. left is (M, K), or TURNED: (K, M); right is (K, N).
template <bool TURNED>
__device__ __forceinline__ void product(
    const float* left, const float* right, int M, int K, int N, int i0, int j0, int k0, int k1,
    float (&sum)[Sums::TM][Sums::TN])
{
    __shared__ Sums tile;
    const int t = threadIdx.x;
    for (; k0 < k1; k0 += SLICE) {
        #pragma unroll
        for (int i = 0; i < Sums::QUADS_A; ++i) {
            const int at = t + i * Sums::THREADS, k = k0 + at / 32;
            if (TURNED) tile.put_rows(at / 32, at % 32 * 4, piece<true>(left, k, k1, i0 + at % 32 * 4, M));
            else tile.put_a(at % 4 * 4, at / 4, piece<true>(left, i0 + at / 4, M, k0 + at % 4 * 4, K));
        }
        #pragma unroll
        for (int i = 0; i < Sums::QUADS_B; ++i) {
            const int at = 4 * (t + i * Sums::THREADS);
            const int k = k0 + at / Sums::COLS, j = at % Sums::COLS;
            tile.put_b(at / Sums::COLS, j, piece<true>(right, k, k1, j0 + j, N));
        }
        __syncthreads();
        tile.multiply(t, sum);
        __syncthreads();
    }
}

// f(row, column, four sums) for all that this thread has of an (M, N) matrix.
template <class F>
__device__ __forceinline__ void each_four(
    const float (&sum)[Sums::TM][Sums::TN], int i0, int j0, int M, int N, F f)
{
    #pragma unroll
    for (int i = 0; i < Sums::TM; ++i)
        #pragma unroll
        for (int j = 0; j < Sums::TN; j += 4) {
            const int row = i0 + Sums::row(threadIdx.x, i), col = j0 + Sums::col(threadIdx.x, j);
            if (row < M && col < N) f(row, col, Quad{{sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]}});
        }
}

// The sum of what the COUNT threads of a block have.
template <int COUNT>
__device__ __forceinline__ float block_sum(float own) {
    __shared__ float all[COUNT];
    all[threadIdx.x] = own;
    __syncthreads();
    for (int half = COUNT / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) all[threadIdx.x] += all[threadIdx.x + half];
        __syncthreads();
    }
    return all[0];
}

// A thread for four numbers.
extern "C" __global__ void __launch_bounds__(THREADS) muon_momentum(
    const Kernels t, float* __restrict__ work, float momentum)
{
    const int row = row_of(t), i = 4 * ((blockIdx.x - t.first[row]) * THREADS + threadIdx.x);
    if (i >= t.rows[row] * t.cols[row]) return;
    const Quad g = load4(t.g[row] + i);
    Quad m = load4(t.m[row] + i), u;
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        m.at[j] += (1.f - momentum) * (g.at[j] - m.at[j]);
        u.at[j] = g.at[j] + momentum * (m.at[j] - g.at[j]);
    }
    store4(t.m[row] + i, m);
    store4(work + t.u[row] + i, u);
}

// u'u, in parts of SHARE rows of u. A block for each tile of each part.
extern "C" __global__ void __launch_bounds__(Sums::THREADS, Sums::BLOCKS) muon_gram(
    const Kernels t, float* __restrict__ work)
{
    const int row = row_of(t), n = t.cols[row], block = blockIdx.x - t.first[row];
    const int across = tiles(n, Sums::COLS), each = across * tiles(n, ROWS), part = block / each;
    const int i0 = block % each / across * ROWS, j0 = block % across * Sums::COLS;
    const float* u = work + t.u[row];
    float sum[Sums::TM][Sums::TN] = {};
    product<true>(u, u, n, t.rows[row], n, i0, j0, part * SHARE, min((part + 1) * SHARE, t.rows[row]), sum);
    float* out = matrix(t, work, row, PARTS + part);
    each_four(sum, i0, j0, n, n, [&](int i, int j, const Quad& v) { store4(out + i * n + j, v); });
}

// A, the parts added up and divided by |u|^2, which is the sum of their diagonals; and P = I.
extern "C" __global__ void __launch_bounds__(THREADS) muon_start(const Kernels t, float* __restrict__ work)
{
    const int row = row_of(t), n = t.cols[row], parts = tiles(t.rows[row], SHARE);
    const float* part = matrix(t, work, row, PARTS);
    float own = 0.f;
    for (int i = threadIdx.x; i < n * parts; i += THREADS)
        own += part[(long long)(i / n) * n * n + i % n * (n + 1)];
    const float squares = block_sum<THREADS>(own), inverse = squares > 0.f ? 1.f / squares : 0.f;
    if (threadIdx.x == 0 && (int)blockIdx.x == t.first[row]) work[row] = squares;
    const int at = 4 * ((blockIdx.x - t.first[row]) * THREADS + threadIdx.x);
    if (at >= n * n) return;
    Quad sum = {{0.f, 0.f, 0.f, 0.f}}, one;
    for (int p = 0; p < parts; ++p) {
        const Quad v = load4(part + (long long)p * n * n + at);
        #pragma unroll
        for (int j = 0; j < 4; ++j) sum.at[j] += v.at[j];
    }
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        sum.at[j] *= inverse;
        one.at[j] = (at + j) / n == (at + j) % n ? 1.f : 0.f;
    }
    store4(matrix(t, work, row, A) + at, sum);
    store4(matrix(t, work, row, P) + at, one);
}

// out = c left right + b left + a I for small matrices; blockIdx.y 1: other_out = other_left right. All
// are symmetric, so that the columns of `left` are read as its rows.
extern "C" __global__ void __launch_bounds__(Sums::THREADS, Sums::BLOCKS) muon_product(
    const Kernels t, float* __restrict__ work, int left, int right, int out, int other_left,
    int other_out, float a, float b, float c)
{
    const int row = row_of(t), n = t.cols[row], block = blockIdx.x - t.first[row];
    const int across = tiles(n, Sums::COLS), i0 = block / across * ROWS, j0 = block % across * Sums::COLS;
    const float* by = matrix(t, work, row, blockIdx.y ? other_left : left);
    float* to = matrix(t, work, row, blockIdx.y ? other_out : out);
    float sum[Sums::TM][Sums::TN] = {};
    product<true>(by, matrix(t, work, row, right), n, n, n, i0, j0, 0, n, sum);
    each_four(sum, i0, j0, n, n, [&](int i, int j, const Quad& v) {
        Quad q = v;
        if (b != 0.f) {
            const Quad l = load4(by + i * n + j);
            #pragma unroll
            for (int k = 0; k < 4; ++k) q.at[k] = c * v.at[k] + b * l.at[k] + (i == j + k ? a : 0.f);
        }
        store4(to + i * n + j, q);
    });
}

// p -= lr |p| / sqrt(n) / |u| u P, and of each tile of 128 x 64 the sum of the squares of the new p.
extern "C" __global__ void __launch_bounds__(Sums::THREADS, Sums::BLOCKS) muon_turn(
    const Kernels t, float* __restrict__ work, float* __restrict__ squares, int by, float lr)
{
    const int row = row_of(t), n = t.cols[row], block = blockIdx.x - t.first[row];
    const int across = tiles(n, Sums::COLS), i0 = block / across * ROWS, j0 = block % across * Sums::COLS;
    float sum[Sums::TM][Sums::TN] = {};
    product<false>(work + t.u[row], matrix(t, work, row, by), t.rows[row], n, n, i0, j0, 0, n, sum);
    const float share = work[row] > 0.f ? lr * *t.length[row] / sqrtf(n * work[row]) : 0.f;
    float own = 0.f;
    each_four(sum, i0, j0, t.rows[row], n, [&](int i, int j, const Quad& v) {
        float* at = t.p[row] + (long long)i * n + j;
        Quad p = load4(at);
        #pragma unroll
        for (int k = 0; k < 4; ++k) {
            p.at[k] -= share * v.at[k];
            own += p.at[k] * p.at[k];
        }
        store4(at, p);
    });
    own = block_sum<Sums::THREADS>(own);
    if (threadIdx.x == 0) squares[blockIdx.x] = own;
}

// p scaled to its length. A thread for four numbers.
extern "C" __global__ void __launch_bounds__(THREADS) muon_length(
    const Kernels t, const float* __restrict__ squares)
{
    const int row = row_of(t), n = t.cols[row], of_it = tiles(t.rows[row], ROWS) * tiles(n, Sums::COLS);
    float own = 0.f;
    for (int i = threadIdx.x; i < of_it; i += THREADS) own += squares[t.tile[row] + i];
    const float factor = *t.length[row] / sqrtf(block_sum<THREADS>(own));
    const int i = 4 * ((blockIdx.x - t.first[row]) * THREADS + threadIdx.x);
    if (i >= t.rows[row] * n) return;
    Quad p = load4(t.p[row] + i);
    #pragma unroll
    for (int j = 0; j < 4; ++j) p.at[j] *= factor;
    store4(t.p[row] + i, p);
}
