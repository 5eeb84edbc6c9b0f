// The product of two tiles: the inner loop of every convolution here. This text goes before
// conv.cu and conv_dw.cu.
//
//     sum[i][j] += sum over k of a[k][i] b[k][j]
//
// A block of threads holds a slice of each matrix in shared memory, a (SLICE x ROWS) and
// b (SLICE x COLS), and each thread keeps TM x TN of the results in registers. For every k it
// reads TM + TN numbers and does TM * TN multiplications with them; a thread with one result
// would read two numbers for each multiplication, and memory would set the pace.

const int SLICE = 16;  // terms of the sum in shared memory at a time
const int ROWS = 128;  // rows of the result per block
const int TM = 8;      // rows of the result per thread

struct Quad { float at[4]; };  // four floats in a register each, read and written at once

__device__ __forceinline__ Quad load4(const float* p) {
    const float4 v = *(const float4*)p;
    return {{v.x, v.y, v.z, v.w}};
}

__device__ __forceinline__ void store4(float* p, const Quad& v) {
    *(float4*)p = make_float4(v.at[0], v.at[1], v.at[2], v.at[3]);
}

// COLS columns of the result per block, TN of them per thread.
template <int COLS, int TN>
struct __align__(16) Tile {
    static const int ACROSS = COLS / TN;                // threads side by side
    static const int THREADS = ROWS / TM * ACROSS;
    static const int QUADS_A = SLICE * ROWS / 4 / THREADS;  // what a thread brings in of a slice
    static const int QUADS_B = SLICE * COLS / 4 / THREADS;

    float a[SLICE][ROWS + 4];  // the 4 keep columns of a off one single bank
    float b[SLICE][COLS];

    __device__ __forceinline__ void multiply(int row, int col, float (&sum)[TM][TN]) const {
        #pragma unroll
        for (int k = 0; k < SLICE; ++k) {
            Quad left[TM / 4], right[TN / 4];
            #pragma unroll
            for (int i = 0; i < TM / 4; ++i) left[i] = load4(&a[k][row + 4 * i]);
            #pragma unroll
            for (int j = 0; j < TN / 4; ++j) right[j] = load4(&b[k][col + 4 * j]);
            #pragma unroll
            for (int i = 0; i < TM; ++i)
                #pragma unroll
                for (int j = 0; j < TN; ++j)
                    sum[i][j] += left[i / 4].at[i % 4] * right[j / 4].at[j % 4];
        }
    }
};
