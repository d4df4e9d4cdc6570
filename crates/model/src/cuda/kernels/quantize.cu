// Weights while they are loaded: the check of their values, and their codes, with the same bits as
// on the CPU.

// Flags of the forbidden values in a tensor: 1 for values that are not finite, 2 for values beyond
// the range of a 16-bit type (`through` is 1 for fp16, 2 for bf16).
template <typename T> __device__ void flaws(u32 *found, const T *x, int through, u64 count) {
    const float infinity = __int_as_float(0x7f800000);
    u32 mine = 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        float v = widen(x[i]);
        if (!(fabsf(v) < infinity)) mine |= 1;
        if (through == 1 && fabsf(rounded<f16>(v)) == infinity) mine |= 2;
        if (through == 2 && fabsf(rounded<bf16>(v)) == infinity) mine |= 2;
    }
    if (mine) atomicOr(found, mine);
}

// The code of a value: how many borders between the levels of quant/nf4.rs are below it.
__device__ __forceinline__ u32 nf4_code(float share) {
    const float levels[16] = {-1.0f,        -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                              -0.091050036f, 0.0f,         0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                              0.44070983f,  0.562617f,    0.72295684f,  1.0f};
    u32 code = 0;
#pragma unroll
    for (int i = 0; i < 15; i++) code += share > (levels[i] + levels[i + 1]) / 2.0f;
    return code;
}

// A warp has a block of 64 values, and a thread two of them.
template <typename T> __device__ void nf4_pack(unsigned char *packed, float *scales, const T *x, u64 count) {
    u64 block = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, at = block * 64 + threadIdx.x % 32 * 2;
    if (block * 64 >= count) return;
    float first = at < count ? widen(x[at]) : 0.0f, second = at + 1 < count ? widen(x[at + 1]) : 0.0f;
    float scale = warp_max(fmaxf(fabsf(first), fabsf(second))), factor = __fdiv_rn(1.0f, scale);
    if (threadIdx.x % 32 == 0) scales[block] = scale;
    if (at < count) packed[at / 2] = nf4_code(__fmul_rn(first, factor)) << 4 | nf4_code(__fmul_rn(second, factor));
}

// The mean of scales, with the same bits as on the CPU, which sums in order in f64. One block.
//
// All scales are multiples of the last place of the smallest. If their sum is less than 2^53 such
// multiples, no partial sum is rounded, and every order gives the same result. Otherwise one thread
// sums in order.
extern "C" __global__ void mean_scale(float *mean, const float *scales, u64 count) {
    double sum = 0;
    float least = __int_as_float(0x7f800000);
    for (u64 i = threadIdx.x; i < count; i += blockDim.x) {
        float scale = scales[i];
        sum += scale;
        if (scale > 0.0f) least = fminf(least, scale);
    }
    sum = block_sum(sum);
    least = -block_max(-least);
    if (threadIdx.x > 0) return;
    int exponent = max((int)(__float_as_uint(least) >> 23), 1) - 150;
    // 2 to the power of exponent + 53, in an f64.
    if (sum >= __longlong_as_double((long long)(1023 + exponent + 53) << 52)) {
        sum = 0;
        for (u64 i = 0; i < count; i++) sum += scales[i];
    }
    *mean = (float)(sum / (double)max(count, 1ull));
}

// The code in the map that the search of bitsandbytes finds, as in quant/scales.rs.
__device__ __forceinline__ unsigned char nearest(const float *map, float value) {
    int below = 0, at = 127, above = 255;
#pragma unroll
    for (int step = 64; step > 0; step /= 2) {
        if (value > map[at]) {
            below = at, at += step;
        } else {
            above = at, at -= step;
        }
    }
    if (value > map[at]) return value > __fmul_rn(__fadd_rn(map[above], map[at]), 0.5f) ? above : at;
    return value < __fmul_rn(__fadd_rn(map[below], map[at]), 0.5f) ? below : at;
}

// Quantizes scales; a block of 256 threads has 256 of them.
extern "C" __global__ void nest(unsigned char *codes, float *absmax, const float *scales, const float *mean,
                                const float *map, u64 count) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    float centred = i < count ? __fsub_rn(scales[i], *mean) : 0.0f;
    float largest = block_max(fabsf(centred));
    if (threadIdx.x == 0) absmax[blockIdx.x] = largest;
    if (i < count) codes[i] = nearest(map, __fmul_rn(centred, __fdiv_rn(1.0f, largest)));
}

// A block has a row; its values are rounded to fp16 first.
template <typename T> __device__ void int8_rows(signed char *codes, float *absmax, const T *x, int columns) {
    x += (u64)blockIdx.x * columns, codes += (u64)blockIdx.x * columns;
    float largest = 0;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) largest = fmaxf(largest, fabsf(rounded<f16>(widen(x[i]))));
    largest = block_max(largest);
    if (threadIdx.x == 0) absmax[blockIdx.x] = largest;
    float factor = __fdiv_rn(127.0f, largest);
    // NaN, which a row of zeros has here, becomes 0.
    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        codes[i] = __float2int_rn(__fmul_rn(rounded<f16>(widen(x[i])), factor));
}

#define KERNELS(T, t)                                                                                                  \
    extern "C" __global__ void flaws_##t(u32 *found, const T *x, int through, u64 count) {                             \
        flaws<T>(found, x, through, count);                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void nf4_pack_##t(unsigned char *packed, float *scales, const T *x, u64 count) {             \
        nf4_pack<T>(packed, scales, x, count);                                                                         \
    }                                                                                                                  \
    extern "C" __global__ void int8_rows_##t(signed char *codes, float *absmax, const T *x, int columns) {             \
        int8_rows<T>(codes, absmax, x, columns);                                                                       \
    }
FOR_TYPES(KERNELS)
