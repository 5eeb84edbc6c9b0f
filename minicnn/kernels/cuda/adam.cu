// Adam for all parameters of a net in one launch.
//
//     m += (1 - beta1) (g - m),   v += (1 - beta2) (g^2 - v)
//     p -= step m / (sqrt(v) / root + eps)
//     step = lr / (1 - beta1^t),   root = sqrt(1 - beta2^t)
//
// Kingma & Ba 2015. The net has 82 parameters, most of them tiny; see table.cu.

const int MOST = 96;  // rows of the table; a launch can carry 4 KiB

struct Table {
    float* p[MOST];
    const float* g[MOST];
    float* m[MOST];
    float* v[MOST];
    int size[MOST];   // numbers in each
    int first[MOST];  // the block that begins with it
    int count;
};

extern "C" __global__ void __launch_bounds__(256) adam(
    const Table t, float beta1, float beta2, float step, float root, float eps)
{
    const int row = row_of(t);
    const int i = (blockIdx.x - t.first[row]) * blockDim.x + threadIdx.x;
    if (i >= t.size[row]) return;
    float p = t.p[row][i], m = t.m[row][i], v = t.v[row][i];
    const float g = t.g[row][i];
    m += (1.f - beta1) * (g - m);
    v += (1.f - beta2) * (g * g - v);
    t.m[row][i] = m;
    t.v[row][i] = v;
    t.p[row][i] = p - step * m / (sqrtf(v) / root + eps);
}
