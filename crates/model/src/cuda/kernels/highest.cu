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

// Of a thread's values two orders in each word, in which zero stands for a column that is not
// there; or, with N = 0, none, and each pass reads the row again.
template <typename T, int V, int N> struct Orders {
    const T *from;
    u32 words[N ? N * V / 2 : 1];

    __device__ __forceinline__ Orders(const T *from, int columns) : from(from) {
        if constexpr (N > 0) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                int i = (k * THREADS + threadIdx.x) * V;
                Pack<T, V> pack;
                if (i < columns) pack = *reinterpret_cast<const Pack<T, V> *>(from + i);
#pragma unroll
                for (int j = 0; j < V; j += 2)
                    words[(k * V + j) / 2] = i < columns ? order(pack.at[j]) | order(pack.at[j + 1]) << 16 : 0;
            }
        }
    }

    // How many of the thread's values reach a border above zero.
    __device__ __forceinline__ int count(u32 border, int columns) const {
        int count = 0;
        if constexpr (N > 0) {
#pragma unroll
            for (int n = 0; n < N * V / 2; n++) {
                count += (words[n] & 0xffff) >= border;
                count += words[n] >= border << 16;
            }
        } else {
            for (int i = threadIdx.x; i < columns; i += THREADS) count += order(from[i]) >= border;
        }
        return count;
    }
};

// One block per row. Writes for each row how many logits are told, whether one is NaN, and the
// columns and f32 bits of those told, in any order: all that lie above one border, as many as fit.
template <typename T, int V, int N> __device__ void highest(u32 *out, const T *logits, int columns) {
    __shared__ u32 told;
    Orders<T, V, N> orders(logits, columns);
    // The highest border that too many values reach; the one above it is the right one.
    u32 border = 0;
    bool fits = columns <= MOST;
    for (int bit = 15; bit >= 0 && !fits; bit--) {
        u32 higher = border | 1u << bit;
        if (block_sum(orders.count(higher, columns)) > MOST) border = higher;
    }
    if (!fits) border++;
    int flawed = 0;
    if (threadIdx.x == 0) told = 0;
    __syncthreads();
    for (int i = threadIdx.x * V; i < columns; i += THREADS * V) {
        float v[V];
        load<V>(logits + i, v);
#pragma unroll
        for (int j = 0; j < V; j++) {
            flawed += v[j] != v[j];
            if (order(narrow<T>(v[j])) < border) continue;
            u32 place = atomicAdd(&told, 1);
            out[2 + 2 * place] = i + j;
            out[3 + 2 * place] = __float_as_uint(v[j]);
        }
    }
    flawed = block_sum(flawed);
    if (threadIdx.x == 0) out[0] = told, out[1] = flawed > 0;
}

template <typename T, int V> __device__ void highest(u32 *out, const T *logits, int columns) {
    start_next(), wait_for_results();
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
