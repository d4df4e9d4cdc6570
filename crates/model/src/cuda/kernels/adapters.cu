// LoRA in decoding: each row has its own adapter, of its own rank. A row's sums depend only on the
// row and its adapter.

// Packs of eight values of A that a lane loads before the kernel before has ended.
#define HELD 12

// shrunk = A x. One warp per element, (row, rank).
template <typename T>
__device__ void rows_lora_a(float *shrunk, const T *x, const u64 *adapters, int index, int depth) {
    start_next();
    int row = blockIdx.x, lane = threadIdx.x % 32;
    const Factor *factor = factor_of(adapters, row, index);
    u32 rank = blockIdx.y * 8 + threadIdx.x / 32;
    const T *a = factor ? (const T *)factor->a + (u64)rank * depth : nullptr;
    x += (u64)row * depth;
    bool wide = aligned(x, depth) && aligned(a, depth);
    Pack<T, 8> held[HELD];
    if (factor && rank < factor->rank && wide) {
#pragma unroll
        for (int n = 0; n < HELD; n++)
            if (n * 256 + lane * 8 < depth) held[n] = *reinterpret_cast<const Pack<T, 8> *>(a + n * 256 + lane * 8);
    }
    wait_for_results();
    if (!factor || rank >= factor->rank) return;
    float sum = 0;
    if (wide) {
        auto add = [&](int k, const Pack<T, 8> &pack) {
            float values[8];
            load<8>(x + k, values);
#pragma unroll
            for (int j = 0; j < 8; j++) sum += values[j] * widen(pack.at[j]);
        };
#pragma unroll
        for (int n = 0; n < HELD; n++)
            if (n * 256 + lane * 8 < depth) add(n * 256 + lane * 8, held[n]);
        for (int k = HELD * 256 + lane * 8; k < depth; k += 256) add(k, *reinterpret_cast<const Pack<T, 8> *>(a + k));
    } else {
        for (int k = lane; k < depth; k += 32) sum += widen(x[k]) * widen(a[k]);
    }
    sum = warp_sum(sum);
    if (lane == 0) shrunk[(u64)row * LARGEST_RANK + rank] = sum;
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
