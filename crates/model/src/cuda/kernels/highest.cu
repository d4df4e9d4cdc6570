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

// Calls `body` for each value of a row with its column.
template <typename T, int V, typename F> __device__ __forceinline__ void each_value(const T *row, int columns, F body) {
    for (int i = threadIdx.x * V; i < columns; i += THREADS * V) {
        Pack<T, V> pack = *reinterpret_cast<const Pack<T, V> *>(row + i);
#pragma unroll
        for (int j = 0; j < V; j++) body(i + j, pack.at[j]);
    }
}

// One block per row. Writes for each row how many logits are told, whether one is NaN, and the
// columns and f32 bits of those told, in any order: all that lie above one border, as many as fit.
template <typename T, int V> __device__ void highest(u32 *out, const T *logits, int columns) {
    __shared__ u32 told;
    const T *row = logits + (u64)blockIdx.x * columns;
    out += (u64)blockIdx.x * (2 + 2 * MOST);
    // The highest border that too many values reach; the one above it is the right one.
    u32 border = 0;
    bool fits = columns <= MOST;
    for (int bit = 15; bit >= 0 && !fits; bit--) {
        u32 higher = border | 1u << bit;
        int count = 0;
        each_value<T, V>(row, columns, [&](int, T x) { count += order(x) >= higher; });
        if (block_sum(count) > MOST) border = higher;
    }
    if (!fits) border++;
    int flawed = 0;
    each_value<T, V>(row, columns, [&](int, T x) { flawed += widen(x) != widen(x); });
    flawed = block_sum(flawed);
    if (threadIdx.x == 0) told = 0;
    __syncthreads();
    each_value<T, V>(row, columns, [&](int i, T x) {
        if (order(x) < border) return;
        u32 place = atomicAdd(&told, 1);
        out[2 + 2 * place] = i;
        out[3 + 2 * place] = __float_as_uint(widen(x));
    });
    __syncthreads();
    if (threadIdx.x == 0) out[0] = told, out[1] = flawed > 0;
}

#define KERNELS(T, t, V)                                                                                               \
    extern "C" __global__ __launch_bounds__(THREADS) void highest_##t##_##V(u32 *out, const T *logits, int columns) {  \
        highest<T, V>(out, logits, columns);                                                                           \
    }
FOR_ALL(KERNELS)
