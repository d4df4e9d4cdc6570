// Dequantizes weights into a scratch matrix for the product that follows.

// The levels of quant/nf4.rs.
alignas(8) __device__ const float LEVELS[16] = {
    -1.0f,        -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f};

// The scales of blocks of 64 values: plain, or nested, map[code] * absmax + offset with an absmax
// for 256 scales.
struct Scales {
    const float *plain;
    const unsigned char *codes;
    const float *absmax, *map, *offset;
};

// The scales of several blocks from `first` on, all under one absmax. Their loads overlap.
template <int U>
__device__ __forceinline__ void scales_of(const Scales &scales, u64 first, const int (&blocks)[U], float (&to)[U]) {
    if (scales.plain) {
#pragma unroll
        for (int u = 0; u < U; u++) to[u] = scales.plain[first + blocks[u]];
        return;
    }
    unsigned char codes[U];
    float absmax = scales.absmax[first / 256], offset = *scales.offset;
#pragma unroll
    for (int u = 0; u < U; u++) codes[u] = scales.codes[first + blocks[u]];
#pragma unroll
    for (int u = 0; u < U; u++) to[u] = __fadd_rn(__fmul_rn(scales.map[codes[u]], absmax), offset);
}

// A level times its block's scale, rounded to the type that was quantized: fp16 (1), bf16 (2) or
// neither (0).
__device__ __forceinline__ float scaled(float level, float scale, int rounding) {
    float value = __fmul_rn(level, scale);
    if (rounding == 1) value = rounded<f16>(value);
    if (rounding == 2) value = rounded<bf16>(value);
    return value;
}

// The bits of a value in shared memory.
template <typename T> __device__ __forceinline__ u32 bits_at(u32 at) {
    u32 bits;
    if constexpr (sizeof(T) == 2) asm("{.reg .b16 b; ld.shared.b16 b, [%1]; cvt.u32.u16 %0, b;}" : "=r"(bits) : "r"(at) : "memory");
    else asm("ld.shared.b32 %0, [%1];" : "=r"(bits) : "r"(at) : "memory");
    return bits;
}

// In assembly, because the compiler would make four stores of it.
__device__ __forceinline__ void write16(void *to, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// A warp has UNITS times four blocks of 64, and a lane eight values of one block of each unit. The
// codes of a block stand for only 16 values, level times scale: its eight lanes compute two of them
// each, and then look their codes up in the warp's `products`. There each block of 16-bit values
// has separate banks.
#define UNITS 4
#define WARPS 8
template <typename T>
__device__ void nf4_by_blocks(T *out, const unsigned char *packed, const Scales &scales, int rounding, u64 count) {
    __shared__ __align__(256) T products[WARPS][UNITS][64];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, at[UNITS], blocks[UNITS];
    u64 first = ((u64)block_from_end() * WARPS + warp) * UNITS * 256;
    if (first >= count) return;
    bool whole = count - first >= UNITS * 256;
    int left = count - first;
    packed += first / 2, out += first;
    u32 codes[UNITS];
    float scale[UNITS], pair[2];
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        // Lanes behind the end load the first values again, so that no branch separates the loads.
        at[u] = u * 256 + lane * 8;
        if (!whole && at[u] >= left) at[u] = 0;
        blocks[u] = at[u] / 64;
        codes[u] = *reinterpret_cast<const u32 *>(packed + at[u] / 2);
    }
    scales_of(scales, first / 64, blocks, scale);
    load<2>(LEVELS + lane % 8 * 2, pair);
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        float v[2] = {scaled(pair[0], scale[u], rounding), scaled(pair[1], scale[u], rounding)};
        store<2>(products[warp][u] + lane * 2, v);
    }
    __syncwarp();
    // Four codes at once become the lowest bytes of their products' addresses; the upper half of a
    // byte is the first code.
    constexpr int SHIFT = sizeof(T) / 2;
    constexpr u32 CODES = 0x0f0f0f0fu << SHIFT;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        u32 from = (u32)__cvta_generic_to_shared(products[warp][u]);
        u32 block = (from & 0xff) * 0x01010101u + lane / 8 * (0x10101010u << SHIFT);
        u32 places[2] = {(codes[u] >> (4 - SHIFT) & CODES) | block, (codes[u] << SHIFT & CODES) | block};
        u32 bits[8];
#pragma unroll
        for (int j = 0; j < 8; j++) bits[j] = bits_at<T>(__byte_perm(places[j % 2], from, 0x7650 + j / 2));
        if (!whole && u * 256 + lane * 8 >= left) continue;
        if constexpr (sizeof(T) == 2) {
            u32 pairs[4];
#pragma unroll
            for (int j = 0; j < 4; j++) pairs[j] = bits[2 * j] | bits[2 * j + 1] << 16;
            write16(out + at[u], pairs[0], pairs[1], pairs[2], pairs[3]);
        } else {
            write16(out + at[u], bits[0], bits[1], bits[2], bits[3]);
            write16(out + at[u] + 4, bits[4], bits[5], bits[6], bits[7]);
        }
    }
}

// A thread has a pair of values, for matrices that cannot be read eight values at once.
template <typename T>
__device__ void nf4_by_pairs(T *out, const unsigned char *packed, const Scales &scales, int rounding, u64 count) {
    u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 2;
    if (i >= count) return;
    unsigned char code = packed[i / 2];
    const int block[1] = {0};
    float scale[1];
    scales_of(scales, i / 64, block, scale);
    out[i] = narrow<T>(scaled(LEVELS[code >> 4], scale[0], rounding));
    if (i + 1 < count) out[i + 1] = narrow<T>(scaled(LEVELS[code & 15], scale[0], rounding));
}

// A thread has V values of a row; more packs per thread were slower.
template <typename T, int V>
__device__ void int8(T *out, const signed char *codes, const float *absmax, int columns, u64 count) {
    u64 i = ((u64)block_from_end() * blockDim.x + threadIdx.x) * V;
    if (i >= count) return;
    // A 32-bit division is faster where it suffices.
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
        Scales scales{plain, codes, absmax, map, offset};                                                              \
        if constexpr (V == 8) nf4_by_blocks(out, packed, scales, rounding, count);                                     \
        else nf4_by_pairs(out, packed, scales, rounding, count);                                                       \
    }                                                                                                                  \
    extern "C" __global__ void int8_##t##_##V(T *out, const signed char *codes, const float *absmax, int columns,      \
                                              u64 count) {                                                             \
        int8<T, V>(out, codes, absmax, columns, count);                                                                \
    }
FOR_ALL(KERNELS)
