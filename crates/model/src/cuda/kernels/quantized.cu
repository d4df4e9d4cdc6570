// Weights from their codes, into a scratch that a product then takes.

__constant__ float LEVELS[16] = {-1.0f,        -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                                 -0.091050036f, 0.0f,         0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                                 0.44070983f,  0.562617f,    0.72295684f,  1.0f};

// A thread has a byte: two values. Rounding 1 is to fp16, 2 to bf16, as what was quantized.
template <typename T>
__device__ void nf4(T *out, const unsigned char *packed, const float *scales, int rounding, u64 count) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (2 * i >= count) return;
    float scale = scales[2 * i / 64];
    unsigned char codes = packed[i];
    float pair[2] = {__fmul_rn(LEVELS[codes >> 4], scale), __fmul_rn(LEVELS[codes & 15], scale)};
    for (int j = 0; j < 2 && 2 * i + j < count; j++) {
        float value = pair[j];
        if (rounding == 1) value = rounded<f16>(value);
        if (rounding == 2) value = rounded<bf16>(value);
        out[2 * i + j] = narrow<T>(value);
    }
}

// The scales of blocks from their own codes: map[code] * absmax of 256 + offset, once a product.
extern "C" __global__ void nested(float *scales, const unsigned char *codes, const float *absmax, const float *map,
                                  const float *offset, u64 count) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) scales[i] = __fadd_rn(__fmul_rn(map[codes[i]], absmax[i / 256]), *offset);
}

template <typename T> __device__ void int8(T *out, const signed char *codes, const float *absmax, int columns, u64 count) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = narrow<T>(codes[i] * __fmul_rn(absmax[i / columns], 1.0f / 127.0f));
}

#define KERNELS(T, t)                                                                                                  \
    extern "C" __global__ void nf4_##t(T *out, const unsigned char *packed, const float *scales, int rounding,         \
                                       u64 count) {                                                                    \
        nf4<T>(out, packed, scales, rounding, count);                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void int8_##t(T *out, const signed char *codes, const float *absmax, int columns,            \
                                        u64 count) {                                                                   \
        int8<T>(out, codes, absmax, columns, count);                                                                   \
    }
FOR_TYPES(KERNELS)
