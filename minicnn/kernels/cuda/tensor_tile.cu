// A tile whose products are made by tensor cores, which GPUs have for these numbers from sm_80 on.
// This text goes behind tile.cu.
//
// A warp multiplies a 16 x 8 matrix by an 8 x 8 one in a single instruction, but both are rounded:
// TF32 keeps 10 of the 23 bits behind the point. Products and sums stay float32.

#ifdef __CUDACC__  // else the tests' own, which run on a CPU
// x, rounded to the nearest number of TF32.
__device__ __forceinline__ float to_tf32(float x) {
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
    return __uint_as_float(rounded);
}

// c += a b, each of the 32 threads of a warp holding some numbers of each matrix. With g = lane / 4
// and t = lane % 4, as NVIDIA's "PTX ISA" lays them out (mma.m16n8k8):
//     a (16, 8): a[0] = a[g][t],   a[1] = a[g + 8][t],   a[2] = a[g][t + 4],   a[3] = a[g + 8][t + 4]
//     b (8, 8):  b[0] = b[t][g],   b[1] = b[t + 4][g]
//     c (16, 8): c0 = c[g][2 t],   c1 = c[g][2 t + 1],   c2 = c[g + 8][2 t],   c3 = c[g + 8][2 t + 1]
__device__ __forceinline__ void mma(
    float& c0, float& c1, float& c2, float& c3, const float (&a)[4], const float (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
                 : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])),
                   "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
                   "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
#endif

__device__ __forceinline__ Quad to_tf32(const Quad& v) {
    return {{to_tf32(v.at[0]), to_tf32(v.at[1]), to_tf32(v.at[2]), to_tf32(v.at[3])}};
}

// A Tile whose products are made by warps, WARPS of them below each other, each as wide as the tile.
//
// Which column of the result the instruction calls its c-th is ours to choose, so the 8 + 8 columns
// of two instructions are dealt out in turn: the four that a thread then holds lie side by side, as
// do the two that it reads of b. So are the terms of the sum: t and t + 4 are the terms 2 t and
// 2 t + 1 of each 8. The widths of a and b spread what is read at once over all banks. a lies row by
// row where a thread brings in terms of one row, in a convolution; and term by term (BY_TERM) where
// it brings in rows of one term, in a weight gradient.
template <int WIDTH, int WARPS, bool BY_TERM = false>
struct __align__(16) TensorTile {
    static const int COLS = WIDTH, TM = ROWS / WARPS / 8, TN = COLS / 4;
    static const int THREADS = 32 * WARPS, BLOCKS = 3;
    static const int QUADS_A = SLICE * ROWS / 4 / THREADS;
    static const int QUADS_B = SLICE * COLS / 4 / THREADS;

    static const int LINES = BY_TERM ? SLICE : ROWS, LINE = BY_TERM ? ROWS + 4 : SLICE + 8;
    float a[LINES][LINE];
    float b[SLICE][COLS + 4];

    static __device__ __forceinline__ int group(int t) { return t / 4; }
    static __device__ __forceinline__ int row(int t, int i) {
        return t / 32 * (ROWS / WARPS) + t % 32 / 4 + 8 * i;
    }
    static __device__ __forceinline__ int col(int t, int j) {
        return 16 * (j / 4) + 4 * (t % 4) + j % 4;
    }

    __device__ __forceinline__ void put_a(int k, int row, const Quad& v) {
        store4(&a[row][k], to_tf32(v));
    }
    __device__ __forceinline__ void put_rows(int k, int row, const Quad& v) {
        store4(&a[k][row], to_tf32(v));
    }
    __device__ __forceinline__ void put_b(int k, int col, const Quad& v) {
        store4(&b[k][col], to_tf32(v));
    }

    __device__ __forceinline__ void multiply(int t, float (&sum)[TM][TN]) const {
        #pragma unroll
        for (int k0 = 0; k0 < SLICE; k0 += 8) {
            const int k = k0 + 2 * (t % 4), g = t % 32 / 4;
            float left[TM / 2][4];
            #pragma unroll
            for (int i = 0; i < TM; ++i) {
                const float2 v = BY_TERM ? make_float2(a[k][row(t, i)], a[k + 1][row(t, i)])
                                         : *(const float2*)&a[row(t, i)][k];
                left[i / 2][i % 2] = v.x;
                left[i / 2][i % 2 + 2] = v.y;
            }
            #pragma unroll
            for (int j = 0; j < TN; j += 4) {
                const float2 first = *(const float2*)&b[k][4 * j + 2 * g];
                const float2 second = *(const float2*)&b[k + 1][4 * j + 2 * g];
                const float even[2] = {first.x, second.x}, odd[2] = {first.y, second.y};
                #pragma unroll
                for (int i = 0; i < TM; i += 2) {
                    float *up = sum[i] + j, *down = sum[i + 1] + j;
                    mma(up[0], up[2], down[0], down[2], left[i / 2], even);
                    mma(up[1], up[3], down[1], down[3], left[i / 2], odd);
                }
            }
        }
    }
};
