// Kernels over rows. Copies by index: a warp has a row, a block four. Layer norm, cross-entropy and
// their gradients: a block has a row.

#define ROW()                                                                                                          \
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;                                              \
    if (row >= rows) return;

template <typename T, int V>
__device__ void gather(T *out, const T *table, const u32 *numbers, int rows, int columns) {
    start_next(), wait_for_results();
    ROW()
    const T *from = table + (u64)numbers[row] * columns;
    T *to = out + (u64)row * columns;
    for (int i = lane * V; i < columns; i += 32 * V)
        *reinterpret_cast<Pack<T, V> *>(to + i) = *reinterpret_cast<const Pack<T, V> *>(from + i);
}

template <typename T, int V>
__device__ void scatter(T *out, const T *x, const u32 *numbers, int rows, int columns) {
    ROW()
    const T *from = x + (u64)row * columns;
    T *to = out + (u64)numbers[row] * columns;
    for (int i = lane * V; i < columns; i += 32 * V)
        *reinterpret_cast<Pack<T, V> *>(to + i) = *reinterpret_cast<const Pack<T, V> *>(from + i);
}

// Threads of a row in losses, and packs of a thread: together up to 32,768 values.
#define LOSS_THREADS 512
#define LOSS_PACKS 8

template <typename T, int V, int N>
__device__ __forceinline__ void norm_row(T *out, const T *from, const T *weight, const T *bias, int columns, float eps) {
    NormRow<T, V, N> x(from, columns);
    norm(x, weight, bias, columns, eps, [&](int, int i, const float (&v)[V]) { store<V>(out + i, v); });
}

template <typename T, int V, int N>
__device__ __forceinline__ void norm_row_backward(T *dx, const T *dy, const T *from, const T *weight, int columns, float eps) {
    NormRow<T, V, N> x(from, columns), gradient(dy, columns), before(dx, columns);
    norm_backward(before, gradient, x, weight, columns, eps, [&](int, int i, const float (&v)[V]) { store<V>(dx + i, v); });
}

template <typename T, int V>
__device__ void layer_norm(T *out, const T *x, const T *weight, const T *bias, int columns, float eps) {
    start_next();
    // The weights of the model have left the cache since the last pass.
    for (int i = threadIdx.x * 64; i < columns; i += NORM_THREADS * 64) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(weight + i));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(bias + i));
    }
    wait_for_results();
    u64 at = (u64)blockIdx.x * columns;
    if constexpr (V == 8 && sizeof(T) == 2) {
        if (columns <= NORM_THREADS * V * NORM_PACKS) {
            norm_row<T, V, NORM_PACKS>(out + at, x + at, weight, bias, columns, eps);
            return;
        }
    }
    norm_row<T, V, 0>(out + at, x + at, weight, bias, columns, eps);
}

template <typename T, int V>
__device__ void layer_norm_backward(T *dx, const T *dy, const T *x, const T *weight, int columns, float eps) {
    u64 at = (u64)blockIdx.x * columns;
    if constexpr (V == 8 && sizeof(T) == 2) {
        if (columns <= NORM_THREADS * V * NORM_PACKS) {
            norm_row_backward<T, V, NORM_PACKS>(dx + at, dy + at, x + at, weight, columns, eps);
            return;
        }
    }
    norm_row_backward<T, V, 0>(dx + at, dy + at, x + at, weight, columns, eps);
}

// The row's loss. The logits become their gradient, softmax minus one-hot, times a factor.
template <typename T, int V, int N>
__device__ __forceinline__ void cross(T *logits, float *loss, int target, int columns, float factor) {
    float picked = widen(logits[target]), most = __int_as_float(0xff800000), sum = 0, v[V];
    Row<T, V, N, LOSS_THREADS> x(logits, columns);
    each<V, N, LOSS_THREADS>(columns, [&](int k, int i) {
        x.read(k, i, v);
#pragma unroll
        for (int j = 0; j < V; j++) most = fmaxf(most, v[j]);
    });
    // Its barrier comes after every thread has read the target's logit, which is overwritten below.
    most = block_max(most);
    each<V, N, LOSS_THREADS>(columns, [&](int k, int i) {
        x.read(k, i, v);
#pragma unroll
        for (int j = 0; j < V; j++) sum += expf(v[j] - most);
    });
    sum = block_sum(sum);
    float share = 1.0f / sum;
    each<V, N, LOSS_THREADS>(columns, [&](int k, int i) {
        x.read(k, i, v);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float p = expf(v[j] - most) * share;
            v[j] = factor * (i + j == target ? p - 1.0f : p);
        }
        store<V>(logits + i, v);
    });
    // `fmaxf` ignores NaN; the sum propagates it.
    if (threadIdx.x == 0) *loss = logf(sum) - (picked - most);
}

template <typename T, int V>
__device__ void cross_entropy(T *logits, float *losses, const u32 *targets, int columns, float factor) {
    int row = blockIdx.x, target = targets[row];
    logits += (u64)row * columns;
    if constexpr (V == 8 && sizeof(T) == 2) {
        if (columns <= LOSS_THREADS * V * LOSS_PACKS) {
            cross<T, V, LOSS_PACKS>(logits, losses + row, target, columns, factor);
            return;
        }
    }
    cross<T, V, 0>(logits, losses + row, target, columns, factor);
}

#define KERNELS(T, t, V)                                                                                               \
    extern "C" __global__ void gather_##t##_##V(T *out, const T *table, const u32 *numbers, int rows, int columns) {   \
        gather<T, V>(out, table, numbers, rows, columns);                                                              \
    }                                                                                                                  \
    extern "C" __global__ void scatter_##t##_##V(T *out, const T *x, const u32 *numbers, int rows, int columns) {      \
        scatter<T, V>(out, x, numbers, rows, columns);                                                                 \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(NORM_THREADS) void layer_norm_##t##_##V(                                   \
        T *out, const T *x, const T *weight, const T *bias, int columns, float eps) {                                  \
        layer_norm<T, V>(out, x, weight, bias, columns, eps);                                                          \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(NORM_THREADS) void layer_norm_backward_##t##_##V(                          \
        T *dx, const T *dy, const T *x, const T *weight, int columns, float eps) {                                     \
        layer_norm_backward<T, V>(dx, dy, x, weight, columns, eps);                                                    \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(LOSS_THREADS, 2) void cross_entropy_##t##_##V(                             \
        T *logits, float *losses, const u32 *targets, int columns, float factor) {                                     \
        cross_entropy<T, V>(logits, losses, targets, columns, factor);                                                 \
    }
FOR_ALL(KERNELS)
