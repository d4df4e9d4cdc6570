// LoRA in decoding, in launches of its own.

// shrunk = A x. One warp per element, (row, rank).
template <typename T>
__device__ void rows_lora_a(float *shrunk, const T *x, const u64 *adapters, int index, int depth) {
    start_next();
    lora_a<T>(shrunk, x, adapters, index, depth, blockIdx.x, blockIdx.y * 8 + threadIdx.x / 32);
}

// y += scale * B shrunk. One thread per element, (row, column).
template <typename T>
__device__ void rows_lora_b(T *y, const float *shrunk, const u64 *adapters, int index, int columns) {
    __shared__ float own[LARGEST_RANK];
    start_next(), wait_for_results();
    int row = blockIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    const Factor *factor = factor_of(adapters, row, index);
    if (!factor) return;
    for (int r = threadIdx.x; r < factor->rank; r += blockDim.x) own[r] = shrunk[(u64)row * LARGEST_RANK + r];
    __syncthreads();
    if (column >= columns) return;
    T *to = y + (u64)row * columns + column;
    *to = narrow<T>(widen(*to) + lora_b<T>(*factor, column, own));
}

#define KERNELS(T, t)                                                                                                  \
    extern "C" __global__ __launch_bounds__(256) void rows_lora_a_##t(float *shrunk, const T *x, const u64 *adapters,  \
                                                                      int index, int depth) {                          \
        rows_lora_a<T>(shrunk, x, adapters, index, depth);                                                             \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(256) void rows_lora_b_##t(T *y, const float *shrunk, const u64 *adapters,  \
                                                                      int index, int columns) {                        \
        rows_lora_b<T>(y, shrunk, adapters, index, columns);                                                           \
    }
FOR_TYPES(KERNELS)
