// Kernels over single values: sums, activations, dropout, casts.

#define VALUE()                                                                                                        \
    u64 i = ((u64)block_from_end() * blockDim.x + threadIdx.x) * V;                                                    \
    if (i >= count) return;

template <typename T, int V> __device__ void add(T *y, const T *x, u64 count) {
    VALUE()
    float a[V], b[V];
    load<V>(y + i, a), load<V>(x + i, b);
#pragma unroll
    for (int j = 0; j < V; j++) a[j] += b[j];
    store<V>(y + i, a);
}

template <typename T, int V> __device__ void activate(T *out, const T *x, int kind, u64 count) {
    start_next(), wait_for_results();
    VALUE()
    float v[V], y[V], slope[V];
    load<V>(x + i, v);
    activations<V>(kind, v, y, slope);
    store<V>(out + i, y);
}

template <typename T, int V> __device__ void activate_backward(T *dy, const T *x, int kind, u64 count) {
    VALUE()
    float v[V], d[V], y[V], slope[V];
    load<V>(x + i, v), load<V>(dy + i, d);
    activations<V>(kind, v, y, slope);
#pragma unroll
    for (int j = 0; j < V; j++) d[j] *= slope[j];
    store<V>(dy + i, d);
}

// out = base + mask_scale * mask * x, with the mask of dropout.rs. Two channels share 64 random
// bits.
template <typename T, int V>
__device__ void dropout(T *out, const T *base, const T *x, const u64 *mask_rows, u64 key, u32 threshold, float mask_scale,
                        int columns, u64 count) {
    VALUE()
    // A 32-bit division is faster where it suffices.
    u64 row = count >> 32 ? i / columns : (u32)i / (u32)columns;
    u64 stream = derive(key, mask_rows[row]), bits = 0;
    int channel = i - row * columns;
    float v[V], b[V];
    load<V>(x + i, v);
    if (base) load<V>(base + i, b);
#pragma unroll
    for (int j = 0; j < V; j++) {
        if (j % 2 == 0) bits = random_at(stream, (channel + j) / 2);
        u32 half = (channel + j) % 2 ? (u32)(bits >> 32) : (u32)bits;
        v[j] = half >= threshold ? v[j] * mask_scale : 0.0f;
        if (base) v[j] += b[j];
    }
    store<V>(out + i, v);
}

#define KERNELS(T, t, V)                                                                                               \
    extern "C" __global__ void add_##t##_##V(T *y, const T *x, u64 count) { add<T, V>(y, x, count); }                  \
    extern "C" __global__ void activate_##t##_##V(T *out, const T *x, int kind, u64 count) {                           \
        activate<T, V>(out, x, kind, count);                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void activate_backward_##t##_##V(T *dy, const T *x, int kind, u64 count) {                   \
        activate_backward<T, V>(dy, x, kind, count);                                                                   \
    }                                                                                                                  \
    extern "C" __global__ void dropout_##t##_##V(T *out, const T *base, const T *x, const u64 *mask_rows, u64 key,     \
                                                 u32 threshold, float mask_scale, int columns, u64 count) {            \
        dropout<T, V>(out, base, x, mask_rows, key, threshold, mask_scale, columns, count);                            \
    }
FOR_ALL(KERNELS)

#define CASTS(T, t)                                                                                                    \
    extern "C" __global__ void from_f32_##t(T *out, const float *x, u64 count) {                                       \
        u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;                                                            \
        if (i < count) out[i] = narrow<T>(x[i]);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void to_f32_##t(float *out, const T *x, u64 count) {                                         \
        u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;                                                            \
        if (i < count) out[i] = widen(x[i]);                                                                           \
    }
FOR_TYPES(CASTS)
