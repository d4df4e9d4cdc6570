// Loss and optimizer: cross-entropy with its gradient in place, sums in fixed orders, one step of AdamW.

// A block has a row: its loss, and softmax minus one-hot, times a factor, over the logits.
template <typename T>
__device__ void cross_entropy(T *logits, float *losses, const u32 *targets, int columns, float factor) {
    int row = blockIdx.x;
    T *x = logits + (u64)row * columns;
    float most = __int_as_float(0xff800000), sum = 0;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) most = fmaxf(most, widen(x[i]));
    most = block_max(most);
    float picked = widen(x[targets[row]]) - most;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += expf(widen(x[i]) - most);
    sum = block_sum(sum);
    float share = 1.0f / sum;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
        float p = expf(widen(x[i]) - most) * share;
        x[i] = narrow<T>(factor * (i == targets[row] ? p - 1.0f : p));
    }
    // A maximum passes over what is not a number, a sum does not.
    if (threadIdx.x == 0) losses[row] = logf(sum) - picked;
}

#define KERNELS(T, t)                                                                                                  \
    extern "C" __global__ void cross_entropy_##t(T *logits, float *losses, const u32 *targets, int columns,            \
                                               float factor) {                                                         \
        cross_entropy<T>(logits, losses, targets, columns, factor);                                                    \
    }
FOR_TYPES(KERNELS)

// One block.
extern "C" __global__ void add_losses(double *sum, const float *losses, int count) {
    double mine = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) mine += losses[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0) *sum += mine;
}

// A sum of squares for each block.
extern "C" __global__ void squares(double *parts, const float *x, u64 count) {
    double mine = 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x)
        mine += (double)x[i] * x[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0) parts[blockIdx.x] = mine;
}

extern "C" __global__ void scale_flat(float *x, float factor, u64 count) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) x[i] *= factor;
}

extern "C" __global__ void adamw(float *values, const float *grads, float *m, float *v, float keep, float rate,
                                 float root, float eps, float b1, float c1, float b2, float c2, u64 count) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float grad = grads[i];
    float first = m[i] = b1 * m[i] + c1 * grad;
    float second = v[i] = b2 * v[i] + c2 * grad * grad;
    values[i] = values[i] * keep - rate * first / (sqrtf(second) * root + eps);
}
