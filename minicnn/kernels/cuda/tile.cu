// The product of two tiles: the inner loop of every convolution here. This text goes behind quad.cu and
// before convolve.cu and convolve_dw.cu.
//
//     sum[i][j] += sum over k of a[k][i] b[k][j]
//
// A block of threads holds a slice of each matrix in shared memory, a (SLICE x ROWS) and
// b (SLICE x COLS), and each thread keeps TM x TN of the results in registers. For every k it
// reads TM + TN numbers and does TM * TN multiplications with them; a thread with one result
// would read two numbers for each multiplication, and memory would set the pace.

const int SLICE = 16;  // terms of the sum in shared memory at a time
const int ROWS = 128;  // rows of the result per block

// One of the two kinds of tile, the other is TensorTile of tensor_tile.cu: WIDTH columns of the result
// per block, EACH of them per thread. A thread's sums are those of rows row(t, i) and columns
// col(t, j), four columns side by side: the next four are those behind all neighbours' first ones, so
// that neighbours read numbers of b beside each other, which lie in different banks.
template <int WIDTH, int EACH>
struct __align__(16) Tile {
    static const int COLS = WIDTH, TM = 8, TN = EACH;       // TM x TN results per thread
    static const int ACROSS = COLS / TN;                    // threads side by side
    static const int THREADS = ROWS / TM * ACROSS, BLOCKS = 3;
    static const int QUADS_A = SLICE * ROWS / 4 / THREADS;  // what a thread brings in of a slice
    static const int QUADS_B = SLICE * COLS / 4 / THREADS;

    float a[SLICE][ROWS + 4];  // the 4 keep columns of a off one single bank
    float b[SLICE][COLS];

    static __device__ __forceinline__ int group(int t) { return t / ACROSS; }  // of equal rows
    static __device__ __forceinline__ int row(int t, int i) { return group(t) * TM + i; }
    static __device__ __forceinline__ int col(int t, int j) {
        return j / 4 * 4 * ACROSS + t % ACROSS * 4 + j % 4;
    }

    // v is a[k .. k + 3][row].
    __device__ __forceinline__ void put_a(int k, int row, const Quad& v) {
        #pragma unroll
        for (int j = 0; j < 4; ++j) a[k + j][row] = v.at[j];
    }

    // v is a[k][row .. row + 3].
    __device__ __forceinline__ void put_rows(int k, int row, const Quad& v) { store4(&a[k][row], v); }

    // v is b[k][col .. col + 3].
    __device__ __forceinline__ void put_b(int k, int col, const Quad& v) { store4(&b[k][col], v); }

    __device__ __forceinline__ void multiply(int t, float (&sum)[TM][TN]) const {
        #pragma unroll
        for (int k = 0; k < SLICE; ++k) {
            Quad left[TM / 4], right[TN / 4];
            #pragma unroll
            for (int i = 0; i < TM / 4; ++i) left[i] = load4(&a[k][row(t, 4 * i)]);
            #pragma unroll
            for (int j = 0; j < TN / 4; ++j) right[j] = load4(&b[k][col(t, 4 * j)]);
            #pragma unroll
            for (int i = 0; i < TM; ++i)
                #pragma unroll
                for (int j = 0; j < TN; ++j)
                    sum[i][j] += left[i / 4].at[i % 4] * right[j / 4].at[j % 4];
        }
    }
};
