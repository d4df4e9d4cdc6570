// Kernels whose unit is a row: copies by number, layer norm and its gradient. A warp has a row, a block has four.

#define ROW()                                                                                                          \
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;                                              \
    if (row >= rows) return;

template <typename T, int V>
__device__ void gather(T *out, const T *table, const u32 *numbers, int rows, int columns) {
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

// Mean and reciprocal deviation; the row is read twice, the second time from cache.
template <typename T, int V>
__device__ __forceinline__ void moments(const T *x, int columns, float eps, int lane, float &mean, float &scale) {
    float sum = 0, v[V];
    for (int i = lane * V; i < columns; i += 32 * V) {
        load<V>(x + i, v);
#pragma unroll
        for (int j = 0; j < V; j++) sum += v[j];
    }
    mean = warp_sum(sum) / columns;
    sum = 0;
    for (int i = lane * V; i < columns; i += 32 * V) {
        load<V>(x + i, v);
#pragma unroll
        for (int j = 0; j < V; j++) sum += (v[j] - mean) * (v[j] - mean);
    }
    scale = 1.0f / sqrtf(warp_sum(sum) / columns + eps);
}

template <typename T, int V>
__device__ void layer_norm(T *out, const T *x, const T *weight, const T *bias, int rows, int columns, float eps) {
    ROW()
    x += (u64)row * columns, out += (u64)row * columns;
    float mean, scale;
    moments<T, V>(x, columns, eps, lane, mean, scale);
    float v[V], w[V], b[V];
    for (int i = lane * V; i < columns; i += 32 * V) {
        load<V>(x + i, v), load<V>(weight + i, w), load<V>(bias + i, b);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = (v[j] - mean) * scale * w[j] + b[j];
        store<V>(out + i, v);
    }
}

// dx += scale (g - mean(g) - x̂ mean(g x̂)) with g = dy * weight
template <typename T, int V>
__device__ void layer_norm_backward(T *dx, const T *dy, const T *x, const T *weight, int rows, int columns, float eps) {
    ROW()
    u64 at = (u64)row * columns;
    x += at, dx += at, dy += at;
    float mean, scale;
    moments<T, V>(x, columns, eps, lane, mean, scale);
    float v[V], w[V], g[V], d[V], sum_g = 0, sum_gx = 0;
    for (int i = lane * V; i < columns; i += 32 * V) {
        load<V>(x + i, v), load<V>(weight + i, w), load<V>(dy + i, g);
#pragma unroll
        for (int j = 0; j < V; j++) {
            sum_g += g[j] * w[j];
            sum_gx += g[j] * w[j] * ((v[j] - mean) * scale);
        }
    }
    float mean_g = warp_sum(sum_g) / columns, mean_gx = warp_sum(sum_gx) / columns;
    for (int i = lane * V; i < columns; i += 32 * V) {
        load<V>(x + i, v), load<V>(weight + i, w), load<V>(dy + i, g), load<V>(dx + i, d);
#pragma unroll
        for (int j = 0; j < V; j++) d[j] += scale * (g[j] * w[j] - mean_g - (v[j] - mean) * scale * mean_gx);
        store<V>(dx + i, d);
    }
}

#define KERNELS(T, t, V)                                                                                               \
    extern "C" __global__ void gather_##t##_##V(T *out, const T *table, const u32 *numbers, int rows, int columns) {   \
        gather<T, V>(out, table, numbers, rows, columns);                                                              \
    }                                                                                                                  \
    extern "C" __global__ void scatter_##t##_##V(T *out, const T *x, const u32 *numbers, int rows, int columns) {      \
        scatter<T, V>(out, x, numbers, rows, columns);                                                                 \
    }                                                                                                                  \
    extern "C" __global__ void layer_norm_##t##_##V(T *out, const T *x, const T *weight, const T *bias, int rows,      \
                                                    int columns, float eps) {                                          \
        layer_norm<T, V>(out, x, weight, bias, rows, columns, eps);                                                    \
    }                                                                                                                  \
    extern "C" __global__ void layer_norm_backward_##t##_##V(T *dx, const T *dy, const T *x, const T *weight,          \
                                                             int rows, int columns, float eps) {                       \
        layer_norm_backward<T, V>(dx, dy, x, weight, rows, columns, eps);                                              \
    }
FOR_ALL(KERNELS)
