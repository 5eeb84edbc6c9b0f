// Four numbers at a time. A thread that asks memory for 16 bytes keeps four times as many under way as
// one that asks for 4, and under way is what a GPU's bandwidth comes of. This text goes first.

struct Quad { float at[4]; };  // four floats in a register each, read and written at once

__device__ __forceinline__ Quad load4(const float* p) {
    const float4 v = *(const float4*)p;
    return {{v.x, v.y, v.z, v.w}};
}

__device__ __forceinline__ void store4(float* p, const Quad& v) {
    *(float4*)p = make_float4(v.at[0], v.at[1], v.at[2], v.at[3]);
}

// row[c .. c + 3] of a row of C numbers, c a multiple of 4; zero from C on. Only where C comes in fours do
// they lie where four can be read at once.
__device__ __forceinline__ Quad read4(const float* row, int c, int C) {
    if (C % 4 == 0) return load4(row + c);
    Quad v = {{0.f, 0.f, 0.f, 0.f}};
    #pragma unroll
    for (int j = 0; j < 4; ++j) if (c + j < C) v.at[j] = row[c + j];
    return v;
}

// The other way: puts v where `read4` would read it.
__device__ __forceinline__ void write4(float* row, int c, int C, const Quad& v) {
    if (C % 4 == 0) return store4(row + c, v);
    #pragma unroll
    for (int j = 0; j < 4; ++j) if (c + j < C) row[c + j] = v.at[j];
}
