// The highest logits of each row, so that the host need not read all of them.

#define THREADS 512
// The most logits of a row that are told.
#define MOST 256

// The order of values as 16 bits: of f32 the upper half. NaN is above all numbers.
__device__ __forceinline__ u32 order(float x) {
    u32 bits = __float_as_uint(x);
    return (bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u)) >> 16;
}
__device__ __forceinline__ u32 order(bf16 x) { return x.bits >> 15 ? (u16)~x.bits : x.bits | 0x8000u; }
__device__ __forceinline__ u32 order(f16 x) { return x.bits >> 15 ? (u16)~x.bits : x.bits | 0x8000u; }

// Packs of a thread: together up to 32,768 values.
#define PACKS 8

// One block per row. Writes for each row how many logits are told, whether one is NaN, and the
// columns and f32 bits of those told, in any order: all that lie above one border, as many as fit.
template <typename T, int V, int N> __device__ void highest(u32 *out, const T *logits, int columns) {
    __shared__ u32 told;
    Row<T, V, N, THREADS> row(logits, columns);
    // The highest border that too many values reach; the one above it is the right one.
    u32 border = 0;
    bool fits = columns <= MOST;
    float v[V];
    for (int bit = 15; bit >= 0 && !fits; bit--) {
        u32 higher = border | 1u << bit;
        int count = 0;
        each<V, N, THREADS>(columns, [&](int k, int i) {
            row.read(k, i, v);
#pragma unroll
            for (int j = 0; j < V; j++) count += order(narrow<T>(v[j])) >= higher;
        });
        if (block_sum(count) > MOST) border = higher;
    }
    if (!fits) border++;
    int flawed = 0;
    if (threadIdx.x == 0) told = 0;
    __syncthreads();
    each<V, N, THREADS>(columns, [&](int k, int i) {
        row.read(k, i, v);
#pragma unroll
        for (int j = 0; j < V; j++) {
            flawed += v[j] != v[j];
            if (order(narrow<T>(v[j])) < border) continue;
            u32 place = atomicAdd(&told, 1);
            out[2 + 2 * place] = i + j;
            out[3 + 2 * place] = __float_as_uint(v[j]);
        }
    });
    flawed = block_sum(flawed);
    if (threadIdx.x == 0) out[0] = told, out[1] = flawed > 0;
}

template <typename T, int V> __device__ void highest(u32 *out, const T *logits, int columns) {
    out += (u64)blockIdx.x * (2 + 2 * MOST), logits += (u64)blockIdx.x * columns;
    if constexpr (V == 8 && sizeof(T) == 2) {
        if (columns <= THREADS * V * PACKS) {
            highest<T, V, PACKS>(out, logits, columns);
            return;
        }
    }
    highest<T, V, 0>(out, logits, columns);
}

#define KERNELS(T, t, V)                                                                                               \
    extern "C" __global__ __launch_bounds__(THREADS) void highest_##t##_##V(u32 *out, const T *logits, int columns) {  \
        highest<T, V>(out, logits, columns);                                                                           \
    }
FOR_ALL(KERNELS)
