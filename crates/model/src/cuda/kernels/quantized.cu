// Weights from their codes, into a scratch that a product then takes.

// quant/nf4.rs's levels, where threads find different ones at once.
__device__ __forceinline__ void fill_levels(float (&levels)[16]) {
    const float values[16] = {-1.0f,        -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                              -0.091050036f, 0.0f,         0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                              0.44070983f,  0.562617f,    0.72295684f,  1.0f};
#pragma unroll
    for (int i = 0; i < 16; i++)
        if (threadIdx.x == i) levels[i] = values[i];
    __syncthreads();
}

// The scales of blocks: in full, or from their own codes, map[code] * absmax of 256 + offset.
struct Scales {
    const float *plain;
    const unsigned char *codes;
    const float *absmax, *map, *offset;
};

__device__ __forceinline__ float scale_of(const Scales &scales, u64 block) {
    if (scales.plain) return scales.plain[block];
    return __fadd_rn(__fmul_rn(scales.map[scales.codes[block]], scales.absmax[block / 256]), *scales.offset);
}

// Of eights a thread has several, whose loads are under way at once.
#define UNITS(V) ((V) == 8 ? 4 : 1)

// A thread has V values, or a pair where V is 1. Rounding 1 is to fp16, 2 to bf16, as what was quantized.
template <typename T, int V>
__device__ void nf4(T *out, const unsigned char *packed, const Scales &scales, int rounding, u64 count) {
    const int N = V == 1 ? 2 : V, U = UNITS(V);
    u64 first = ((u64)blockIdx.x * blockDim.x * U + threadIdx.x) * N, stride = blockDim.x * N;
    Pack<unsigned char, N / 2> codes[U];
    float scale[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
        u64 i = first + u * stride;
        if (i >= count) continue;
        codes[u] = *reinterpret_cast<const Pack<unsigned char, N / 2> *>(packed + i / 2);
        scale[u] = scale_of(scales, i / 64);
    }
    __shared__ float levels[16];
    fill_levels(levels);
#pragma unroll
    for (int u = 0; u < U; u++) {
        u64 i = first + u * stride;
        if (i >= count) continue;
        float v[N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            v[j] = __fmul_rn(levels[j % 2 ? codes[u].at[j / 2] & 15 : codes[u].at[j / 2] >> 4], scale[u]);
            if (rounding == 1) v[j] = rounded<f16>(v[j]);
            if (rounding == 2) v[j] = rounded<bf16>(v[j]);
        }
        if (V > 1) {
            store<N>(out + i, v);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++)
                if (i + j < count) out[i + j] = narrow<T>(v[j]);
        }
    }
}

// A thread has V values of a row; more of them at once were slower.
template <typename T, int V>
__device__ void int8(T *out, const signed char *codes, const float *absmax, int columns, u64 count) {
    u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= count) return;
    // Divisions of 32 bits where they do.
    float unit = __fmul_rn(absmax[count >> 32 ? i / columns : (u32)i / (u32)columns], 1.0f / 127.0f), v[V];
    Pack<signed char, V> pack = *reinterpret_cast<const Pack<signed char, V> *>(codes + i);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = pack.at[j] * unit;
    store<V>(out + i, v);
}

#define KERNELS(T, t, V)                                                                                               \
    extern "C" __global__ void nf4_##t##_##V(T *out, const unsigned char *packed, const float *plain,                  \
                                             const unsigned char *codes, const float *absmax, const float *map,        \
                                             const float *offset, int rounding, u64 count) {                           \
        nf4<T, V>(out, packed, Scales{plain, codes, absmax, map, offset}, rounding, count);                            \
    }                                                                                                                  \
    extern "C" __global__ void int8_##t##_##V(T *out, const signed char *codes, const float *absmax, int columns,      \
                                              u64 count) {                                                             \
        int8<T, V>(out, codes, absmax, columns, count);                                                                \
    }
FOR_ALL(KERNELS)
