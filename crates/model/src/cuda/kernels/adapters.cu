// LoRA in decoding: each row has its own adapter, of its own rank. A row's sums depend only on the
// row and its adapter.

// Dot product of x and w across the lanes of a warp.
template <typename T> __device__ __forceinline__ float warp_dot(const T *x, const T *w, int depth, int lane) {
    float sum = 0;
    if (aligned(x, depth) && aligned(w, depth)) {
#pragma unroll 4
        for (int k = lane * 8; k < depth; k += 256) {
            float left[8], right[8];
            load<8>(x + k, left), load<8>(w + k, right);
#pragma unroll
            for (int j = 0; j < 8; j++) sum += left[j] * right[j];
        }
    } else {
        for (int k = lane; k < depth; k += 32) sum += widen(x[k]) * widen(w[k]);
    }
    return warp_sum(sum);
}

// shrunk = A x. One warp per element, (row, rank).
template <typename T>
__device__ void rows_lora_a(float *shrunk, const T *x, const u64 *adapters, int index, int depth) {
    start_next(), wait_for_results();
    int row = blockIdx.x, lane = threadIdx.x % 32;
    const Factor *factor = factor_of(adapters, row, index);
    if (!factor) return;
    for (u32 rank = blockIdx.y * 8 + threadIdx.x / 32; rank < factor->rank; rank += gridDim.y * 8) {
        float sum = warp_dot(x + (u64)row * depth, (const T *)factor->a + (u64)rank * depth, depth, lane);
        if (lane == 0) shrunk[(u64)row * LARGEST_RANK + rank] = sum;
    }
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
