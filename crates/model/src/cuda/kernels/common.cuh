// Included by every kernel file: number types, vector loads and stores, sums over a warp or a
// block. It needs no header of the toolkit, because NVRTC has none at run time.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
    u16 bits;
};

struct f16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ f16 narrow<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// The value rounded to the type.
template <typename T> __device__ __forceinline__ float rounded(float x) { return widen(narrow<T>(x)); }

// The hardware's functions, without the code that the compiler adds for subnormal numbers.
__device__ __forceinline__ float two_to(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A kernel that calls `wait_for_results` may be launched before the kernel before it has ended, on
// GPUs that have this (Hopper and later).

// Lets the next kernel's blocks start. Call it before `wait_for_results`.
__device__ __forceinline__ void start_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until the kernels before have ended. Nothing that they write may be read, and nothing that
// they use may be written, before.
__device__ __forceinline__ void wait_for_results() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// V consecutive values; their address must be a multiple of their size together.
template <typename T, int V> struct alignas(sizeof(T) * V) Pack {
    T at[V];
};

template <int V, typename T> __device__ __forceinline__ void load(const T *from, float (&to)[V]) {
    Pack<T, V> pack = *reinterpret_cast<const Pack<T, V> *>(from);
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = widen(pack.at[i]);
}

template <int V, typename T> __device__ __forceinline__ void store(T *to, const float (&from)[V]) {
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; i++) pack.at[i] = narrow<T>(from[i]);
    *reinterpret_cast<Pack<T, V> *>(to) = pack;
}

// Hides 16-bit values from the compiler, which would keep them as f32 in twice the registers.
template <typename T> __device__ __forceinline__ void keep_packed(Pack<T, 8> &pack) {
    if constexpr (sizeof(T) == 2) {
        uint4 &words = reinterpret_cast<uint4 &>(pack);
        asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
    }
}

// The block's index counted from the end. The kernel before wrote the end last, so that the end is
// still in cache; this kernel writes the beginning last, which the next kernel then finds there.
__device__ __forceinline__ u32 block_from_end() { return gridDim.x - 1 - blockIdx.x; }

// Sums in a fixed tree; every lane gets the sum.
template <typename F> __device__ __forceinline__ F warp_sum(F x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// The same over a block of whole warps; every thread gets the sum.
template <typename F> __device__ __forceinline__ F block_sum(F x) {
    __shared__ F parts[32];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    F sum = 0;
    for (int i = 0; i < blockDim.x / 32; i++) sum += parts[i];
    return sum;
}

__device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[32];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float most = parts[0];
    for (int i = 1; i < blockDim.x / 32; i++) most = fmaxf(most, parts[i]);
    return most;
}

// The finaliser and the stream of random.rs, with the same bits.
#define GOLDEN 0x9e3779b97f4a7c15ull

__device__ __forceinline__ u64 mix(u64 x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

__device__ __forceinline__ u64 derive(u64 key, u64 value) { return mix((key + GOLDEN) ^ mix(value + GOLDEN)); }
__device__ __forceinline__ u64 random_at(u64 key, u64 index) { return mix(key + (index + 1) * GOLDEN); }

// Defines a kernel for each element type, with one value and with eight values at once.
#define FOR_ALL(K)                                                                                                     \
    K(float, f32, 1) K(float, f32, 8) K(bf16, bf16, 1) K(bf16, bf16, 8) K(f16, f16, 1) K(f16, f16, 8)
#define FOR_TYPES(K) K(float, f32) K(bf16, bf16) K(f16, f16)
