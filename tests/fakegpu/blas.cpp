// The few functions of cuBLAS that arrays of float64 need here: plain loops.
#include "cudart.h"

namespace {

cudaStream_t queue = nullptr;
int pointer_mode = 0;

template <class T> struct Matrix {  // column by column; `across` reads it transposed
    const T* p;
    int across, ld;
    T at(int i, int j) const { return across ? p[j + (long)i * ld] : p[i + (long)j * ld]; }
};

template <class T> void gemm(Matrix<T> a, Matrix<T> b, int m, int n, int k, const void* alpha, const void* beta, T* c, int ldc) {
    const T scale = *(const T*)alpha, keep = *(const T*)beta;
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < m; ++i) {
            double sum = 0;
            for (int l = 0; l < k; ++l) sum += (double)a.at(i, l) * b.at(l, j);
            T& out = c[i + (long)j * ldc];
            out = scale * (T)sum + (keep == 0 ? 0 : keep * out);
        }
}

int wait() { return cudaStreamSynchronize(queue); }

}  // namespace

extern "C" {

typedef void* Handle;
int cublasCreate_v2(Handle* h) { *h = &queue; return 0; }
int cublasDestroy_v2(Handle) { return 0; }
int cublasGetVersion_v2(Handle, int* v) { *v = 120900; return 0; }
int cublasSetStream_v2(Handle, cudaStream_t s) { queue = s; return 0; }
int cublasGetStream_v2(Handle, cudaStream_t* s) { *s = queue; return 0; }
int cublasGetPointerMode_v2(Handle, int* m) { *m = pointer_mode; return 0; }
int cublasSetPointerMode_v2(Handle, int m) { pointer_mode = m; return 0; }
int cublasGetMathMode(Handle, int* m) { *m = 0; return 0; }
int cublasSetMathMode(Handle, int) { return 0; }

#define GEMM(LETTER, T)                                                                                                       \
    int cublas##LETTER##gemm_v2(Handle, int ta, int tb, int m, int n, int k, const T* alpha, const T* a, int lda, const T* b, \
                                int ldb, const T* beta, T* c, int ldc) {                                                      \
        if (int error = wait()) return error;                                                                                 \
        gemm<T>({a, ta, lda}, {b, tb, ldb}, m, n, k, alpha, beta, c, ldc);                                                    \
        return 0;                                                                                                             \
    }                                                                                                                         \
    int cublas##LETTER##gemmStridedBatched(Handle, int ta, int tb, int m, int n, int k, const T* alpha, const T* a, int lda,  \
                                           long long sa, const T* b, int ldb, long long sb, const T* beta, T* c, int ldc,     \
                                           long long sc, int count) {                                                         \
        if (int error = wait()) return error;                                                                                 \
        for (int i = 0; i < count; ++i)                                                                                       \
            gemm<T>({a + i * sa, ta, lda}, {b + i * sb, tb, ldb}, m, n, k, alpha, beta, c + i * sc, ldc);                     \
        return 0;                                                                                                             \
    }                                                                                                                         \
    int cublas##LETTER##gemmBatched(Handle, int ta, int tb, int m, int n, int k, const T* alpha, const T** a, int lda,        \
                                    const T** b, int ldb, const T* beta, T** c, int ldc, int count) {                         \
        if (int error = wait()) return error;                                                                                 \
        for (int i = 0; i < count; ++i) gemm<T>({a[i], ta, lda}, {b[i], tb, ldb}, m, n, k, alpha, beta, c[i], ldc);           \
        return 0;                                                                                                             \
    }                                                                                                                         \
    int cublas##LETTER##gemv_v2(Handle, int t, int m, int n, const T* alpha, const T* a, int lda, const T* x, int dx,         \
                                const T* beta, T* y, int dy) {                                                                \
        if (int error = wait()) return error;                                                                                 \
        const Matrix<T> matrix{a, t, lda};                                                                                    \
        for (int i = 0; i < (t ? n : m); ++i) {                                                                               \
            double sum = 0;                                                                                                   \
            for (int j = 0; j < (t ? m : n); ++j) sum += (double)matrix.at(i, j) * x[(long)j * dx];                           \
            T& out = y[(long)i * dy];                                                                                         \
            out = *alpha * (T)sum + (*beta == 0 ? 0 : *beta * out);                                                           \
        }                                                                                                                     \
        return 0;                                                                                                             \
    }                                                                                                                         \
    int cublas##LETTER##dot_v2(Handle, int n, const T* x, int dx, const T* y, int dy, T* result) {                            \
        if (int error = wait()) return error;                                                                                 \
        double sum = 0;                                                                                                       \
        for (int i = 0; i < n; ++i) sum += (double)x[(long)i * dx] * y[(long)i * dy];                                         \
        *result = (T)sum;                                                                                                     \
        return 0;                                                                                                             \
    }
GEMM(S, float)
GEMM(D, double)

enum { FLOAT = 0, DOUBLE = 1, UNKNOWN_TYPE = 15 };  // cudaDataType; CUBLAS_STATUS_NOT_SUPPORTED
int cublasGemmStridedBatchedEx(Handle h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int type, int lda,
                               long long sa, const void* b, int, int ldb, long long sb, const void* beta, void* c, int, int ldc,
                               long long sc, int count, int, int) {
    if (type == DOUBLE)
        return cublasDgemmStridedBatched(h, ta, tb, m, n, k, (const double*)alpha, (const double*)a, lda, sa, (const double*)b, ldb,
                                         sb, (const double*)beta, (double*)c, ldc, sc, count);
    if (type == FLOAT)
        return cublasSgemmStridedBatched(h, ta, tb, m, n, k, (const float*)alpha, (const float*)a, lda, sa, (const float*)b, ldb, sb,
                                         (const float*)beta, (float*)c, ldc, sc, count);
    return UNKNOWN_TYPE;
}
int cublasGemmEx(Handle h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int type, int lda, const void* b,
                 int tb_, int ldb, const void* beta, void* c, int tc, int ldc, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, type, lda, 0, b, tb_, ldb, 0, beta, c, tc, ldc, 0, 1, compute, algorithm);
}

}  // extern "C"
