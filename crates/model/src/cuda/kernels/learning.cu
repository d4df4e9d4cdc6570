// Loss and optimizer: sums in a fixed order, one step of AdamW.

// One block.
extern "C" __global__ void add_losses(double *sum, const float *losses, int count) {
    double mine = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) mine += losses[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0) *sum += mine;
}

// One sum of squares per block.
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
