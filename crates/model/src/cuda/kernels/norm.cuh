// A block's row in registers, its layer norm and the gradient of that.

// A thread's share of the row that its block of B threads has: N packs of eight 16-bit values in
// registers. With N = 0 there are no registers, and each read comes from cache.
template <typename T, int V, int N, int B> struct Row {
    const T *from;
    uint4 held[N ? N : 1];

    __device__ __forceinline__ Row(const T *from, int columns) : from(from) {
#pragma unroll
        for (int k = 0; k < N; k++)
            if ((k * B + threadIdx.x) * V < columns) held[k] = reinterpret_cast<const uint4 *>(from)[k * B + threadIdx.x];
    }

    // Replaces a pack.
    __device__ __forceinline__ void write(int k, const float (&from)[V]) { store<V>(reinterpret_cast<T *>(&held[k]), from); }

    __device__ __forceinline__ void read(int k, int i, float (&to)[V]) {
        if (N == 0) {
            load<V>(from + i, to);
            return;
        }
        // Hides the values from the compiler, which would keep them as f32 in twice the registers.
        uint4 &pack = held[k];
        asm volatile("" : "+r"(pack.x), "+r"(pack.y), "+r"(pack.z), "+r"(pack.w));
        load<V>(reinterpret_cast<const T *>(&pack), to);
    }
};

// Threads of a row in norms, and packs of a thread: together up to 3,072 values.
#define NORM_THREADS 128
#define NORM_PACKS 3

// Calls `body` for each pack of a thread, with its index and its first column.
template <int V, int N, int B, typename F> __device__ __forceinline__ void each(int columns, F body) {
    if (N) {
#pragma unroll
        for (int k = 0; k < N; k++)
            if ((k * B + threadIdx.x) * V < columns) body(k, (k * B + threadIdx.x) * V);
    } else {
        for (int i = threadIdx.x * V; i < columns; i += B * V) body(0, i);
    }
}

// The mean and the reciprocal of the standard deviation.
template <typename T, int V, int N>
__device__ __forceinline__ void moments(Row<T, V, N, NORM_THREADS> &x, int columns, float eps, float &mean, float &scale) {
    float sum = 0, v[V];
    each<V, N, NORM_THREADS>(columns, [&](int k, int i) {
        x.read(k, i, v);
#pragma unroll
        for (int j = 0; j < V; j++) sum += v[j];
    });
    float centre = block_sum(sum) / columns;
    sum = 0;
    each<V, N, NORM_THREADS>(columns, [&](int k, int i) {
        x.read(k, i, v);
#pragma unroll
        for (int j = 0; j < V; j++) sum += (v[j] - centre) * (v[j] - centre);
    });
    mean = centre;
    scale = 1.0f / sqrtf(block_sum(sum) / columns + eps);
}

template <typename T, int V, int N> using NormRow = Row<T, V, N, NORM_THREADS>;

// The layer norm. `take` gets each pack of the result: its index, its first column, its values.
template <typename T, int V, int N, typename F>
__device__ __forceinline__ void norm(NormRow<T, V, N> &x, const T *weight, const T *bias, int columns, float eps, F take) {
    float mean, scale;
    moments(x, columns, eps, mean, scale);
    each<V, N, NORM_THREADS>(columns, [&](int k, int i) {
        float v[V], w[V], b[V];
        x.read(k, i, v), load<V>(weight + i, w), load<V>(bias + i, b);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = (v[j] - mean) * scale * w[j] + b[j];
        take(k, i, v);
    });
}

// dx += scale (g - mean(g) - x̂ mean(g x̂)) with g = dy * weight
template <typename T, int V, int N, typename F>
__device__ __forceinline__ void norm_backward(NormRow<T, V, N> &dx, NormRow<T, V, N> &dy, NormRow<T, V, N> &x,
                                              const T *weight, int columns, float eps, F take) {
    float mean, scale, sum_g = 0, sum_gx = 0;
    moments(x, columns, eps, mean, scale);
    each<V, N, NORM_THREADS>(columns, [&](int k, int i) {
        float v[V], w[V], g[V];
        x.read(k, i, v), dy.read(k, i, g), load<V>(weight + i, w);
#pragma unroll
        for (int j = 0; j < V; j++) {
            sum_g += g[j] * w[j];
            sum_gx += g[j] * w[j] * ((v[j] - mean) * scale);
        }
    });
    float mean_g = block_sum(sum_g) / columns, mean_gx = block_sum(sum_gx) / columns;
    each<V, N, NORM_THREADS>(columns, [&](int k, int i) {
        float v[V], w[V], g[V], d[V];
        x.read(k, i, v), dy.read(k, i, g), dx.read(k, i, d), load<V>(weight + i, w);
#pragma unroll
        for (int j = 0; j < V; j++) d[j] += scale * (g[j] * w[j] - mean_g - (v[j] - mean) * scale * mean_gx);
        take(k, i, d);
    });
}
