// 8-bit floats (e4m3) with a scale for each row: quantized from any type and back. Compiled only
// for GPUs that have the type.

__device__ __forceinline__ u16 narrow_pair(float low, float high) {
    u16 codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    return codes;
}

__device__ __forceinline__ float widen_code(unsigned char code) {
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((u16)code));
    return widen(f16{(u16)halves});
}

// Eight values in their own type, as loaded or as rounded.
template <typename T> struct Pack8 {
    uint4 held[sizeof(T) / 2];

    __device__ __forceinline__ void fetch(const T *from, bool real) {
#pragma unroll
        for (int i = 0; i < sizeof(T) / 2; i++)
            held[i] = real ? reinterpret_cast<const uint4 *>(from)[i] : make_uint4(0, 0, 0, 0);
    }

    __device__ __forceinline__ void read(float (&to)[8]) {
        // Hides the values from the compiler, which would keep them as f32 in twice the registers.
#pragma unroll
        for (int i = 0; i < sizeof(T) / 2; i++)
            asm volatile("" : "+r"(held[i].x), "+r"(held[i].y), "+r"(held[i].z), "+r"(held[i].w));
        load<8>(reinterpret_cast<const T *>(held), to);
    }

    __device__ __forceinline__ void write(const float (&from)[8]) { store<8>(reinterpret_cast<T *>(held), from); }
};

__device__ __forceinline__ void scale_by(const float *factors, int column, float (&v)[8]) {
    if (!factors) return;
    float f[8];
    load<8>(factors + column, f);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = __fmul_rn(v[j], f[j]);
}

// The block's largest magnitude, but at least 2^-100, so that a row of zeros has a scale. As in
// quant/fp8.rs.
__device__ __forceinline__ float largest(float most) { return fmaxf(block_max(most), __uint_as_float((127 - 100) << 23)); }

__device__ __forceinline__ void write_codes(unsigned char *to, const float (&v)[8], float factor) {
    Pack<u16, 4> out;
#pragma unroll
    for (int j = 0; j < 4; j++) out.at[j] = narrow_pair(__fmul_rn(v[2 * j], factor), __fmul_rn(v[2 * j + 1], factor));
    *reinterpret_cast<Pack<u16, 4> *>(to) = out;
}

// The values that are quantized: a row, its activation, or a gradient times the activation's slope
// at the row.
enum Source { PLAIN, ACTIVATED, ACTIVATED_BACKWARD };

// A block has a row and reads it once: a thread keeps P packs of eight values in registers. Columns
// are multiplied by `factors` first, unless it is null. The row's largest magnitude becomes 448.
// Rows from `rows` on are padding: their codes are zeros.
template <typename T, int P, Source SOURCE>
__device__ void to_fp8(unsigned char *codes, float *scales, const T *x, const T *dy, const float *factors, int kind,
                       int rows, int columns) {
    int row = block_from_end();
    u64 at = (u64)row * columns;
    Pack8<T> packs[P];
    float v[8], most = 0;
#pragma unroll
    for (int p = 0; p < P; p++) {
        int column = (p * blockDim.x + threadIdx.x) * 8;
        packs[p].fetch(x + at + column, row < rows && column < columns);
    }
#pragma unroll
    for (int p = 0; p < P; p++) {
        int column = (p * blockDim.x + threadIdx.x) * 8;
        if (column >= columns) continue;
        if (SOURCE == PLAIN) {
            packs[p].read(v);
            scale_by(factors, column, v);
        } else if (row < rows) {
            Pack8<T> gradient;
            if (SOURCE == ACTIVATED_BACKWARD) gradient.fetch(dy + at + column, true);
            float y[8], slope[8];
            packs[p].read(v);
            activations<8>(kind, v, y, slope);
            if (SOURCE == ACTIVATED_BACKWARD) {
                gradient.read(v);
#pragma unroll
                for (int j = 0; j < 8; j++) v[j] *= slope[j];
                scale_by(factors, column, v);
            }
            packs[p].write(SOURCE == ACTIVATED_BACKWARD ? v : y);
            packs[p].read(v);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) most = fmaxf(most, fabsf(v[j]));
    }
    most = largest(most);
    float factor = __fdiv_rn(448.0f, most);
    if (threadIdx.x == 0) scales[row] = __fmul_rn(most, 1.0f / 448.0f);
#pragma unroll
    for (int p = 0; p < P; p++) {
        int column = (p * blockDim.x + threadIdx.x) * 8;
        if (column >= columns) continue;
        packs[p].read(v);
        if (SOURCE == PLAIN) scale_by(factors, column, v);
        write_codes(codes + at + column, v, factor);
    }
}

// Writes a block's row to `out` and quantizes it. `norms` computes the row, a layer norm or its
// gradient, and passes each pack on.
template <typename F>
__device__ void norm_to_fp8(unsigned char *codes, float *scales, bf16 *out, const bf16 *from, const float *factors, int rows,
                            int columns, F norms) {
    int row = blockIdx.x;
    u64 at = (u64)row * columns;
    NormRow<bf16, 8, NORM_PACKS> values(from + at, row < rows ? columns : 0);
    float most = 0;
    if (row < rows) {
        norms(values, at, [&](int k, int i, float (&v)[8]) {
            values.write(k, v);
            values.read(k, i, v);
            store<8>(out + at + i, v);
            scale_by(factors, i, v);
#pragma unroll
            for (int j = 0; j < 8; j++) most = fmaxf(most, fabsf(v[j]));
        });
    }
    most = largest(most);
    float factor = __fdiv_rn(448.0f, most), v[8] = {0};
    if (threadIdx.x == 0) scales[row] = __fmul_rn(most, 1.0f / 448.0f);
    each<8, NORM_PACKS, NORM_THREADS>(columns, [&](int k, int i) {
        if (row < rows) values.read(k, i, v), scale_by(factors, i, v);
        write_codes(codes + at + i, v, factor);
    });
}

// A thread has V values of a row, or four packs of eight, which it loads at the same time.
template <typename T, int V>
__device__ void from_fp8(T *out, const unsigned char *codes, const float *scales, int columns, u64 count) {
    const int U = V == 8 ? 4 : 1;
    u64 first = ((u64)blockIdx.x * blockDim.x * U + threadIdx.x) * V, stride = blockDim.x * V;
    Pack<unsigned char, V> pack[U];
    float scale[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
        u64 i = first + u * stride;
        if (i >= count) continue;
        pack[u] = *reinterpret_cast<const Pack<unsigned char, V> *>(codes + i);
        // A 32-bit division is faster where it suffices.
        scale[u] = scales[count >> 32 ? i / columns : (u32)i / (u32)columns];
    }
#pragma unroll
    for (int u = 0; u < U; u++) {
        u64 i = first + u * stride;
        if (i >= count) continue;
        float v[V];
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = __fmul_rn(widen_code(pack[u].at[j]), scale[u]);
        store<V>(out + i, v);
    }
}

// Transposes codes by tiles of 64 x 64; a block has 64 x 4 threads.
extern "C" __global__ void transpose_codes(unsigned char *out, const unsigned char *codes, int rows, int columns) {
    __shared__ unsigned char tile[64][68];
    int across = threadIdx.x % 64, down = threadIdx.x / 64;
    int column = blockIdx.x * 64 + across, row = blockIdx.y * 64 + down;
    for (int i = 0; i < 64 && row + i < rows; i += 4)
        if (column < columns) tile[down + i][across] = codes[(u64)(row + i) * columns + column];
    __syncthreads();
    column = blockIdx.y * 64 + across, row = blockIdx.x * 64 + down;
    for (int i = 0; i < 64 && row + i < columns; i += 4)
        if (column < rows) out[(u64)(row + i) * rows + column] = tile[across][down + i];
}

// Adds a bias to each row, for products that cannot add it themselves.
template <typename T, int V> __device__ void add_bias(T *y, const T *bias, int columns, u64 count) {
    u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= count) return;
    float a[V], b[V];
    load<V>(y + i, a), load<V>(bias + (count >> 32 ? i % columns : (u32)i % (u32)columns), b);
#pragma unroll
    for (int j = 0; j < V; j++) a[j] += b[j];
    store<V>(y + i, a);
}

// The most threads for a row; fp8.rs has the same number.
#define MAX_THREADS 384

#define TO(T, t, P)                                                                                                    \
    extern "C" __global__ __launch_bounds__(MAX_THREADS) void to_fp8_##t##_##P(                                        \
        unsigned char *codes, float *scales, const T *x, const float *factors, int rows, int columns) {                \
        to_fp8<T, P, PLAIN>(codes, scales, x, x, factors, 0, rows, columns);                                           \
    }
#define FOR_PACKS(T, t) TO(T, t, 1) TO(T, t, 2) TO(T, t, 4) TO(T, t, 8)
FOR_TYPES(FOR_PACKS)

#define FUSED(P)                                                                                                       \
    extern "C" __global__ __launch_bounds__(MAX_THREADS, P > 4 ? 2 : 3) void activate_to_fp8_bf16_##P(                 \
        unsigned char *codes, float *scales, const bf16 *x, int kind, int rows, int columns) {                         \
        to_fp8<bf16, P, ACTIVATED>(codes, scales, x, x, 0, kind, rows, columns);                                       \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(MAX_THREADS, P > 4 ? 2 : 3) void activate_backward_to_fp8_bf16_##P(        \
        unsigned char *codes, float *scales, const bf16 *x, const bf16 *dy, const float *factors, int kind, int rows,  \
        int columns) {                                                                                                 \
        to_fp8<bf16, P, ACTIVATED_BACKWARD>(codes, scales, x, dy, factors, kind, rows, columns);                       \
    }
FUSED(1) FUSED(2) FUSED(4) FUSED(8)

// For rows of up to 3,072 values.
extern "C" __global__ __launch_bounds__(NORM_THREADS) void norm_to_fp8_bf16(
    unsigned char *codes, float *scales, bf16 *out, const bf16 *x, const bf16 *weight, const bf16 *bias, float eps, int rows,
    int columns) {
    norm_to_fp8(codes, scales, out, x, nullptr, rows, columns, [&](NormRow<bf16, 8, NORM_PACKS> &row, u64, auto take) {
        norm(row, weight, bias, columns, eps, take);
    });
}

extern "C" __global__ __launch_bounds__(NORM_THREADS) void norm_backward_to_fp8_bf16(
    unsigned char *codes, float *scales, bf16 *dx, const bf16 *dy, const bf16 *x, const bf16 *weight, const float *factors,
    float eps, int rows, int columns) {
    norm_to_fp8(codes, scales, dx, dx, factors, rows, columns, [&](NormRow<bf16, 8, NORM_PACKS> &before, u64 at, auto take) {
        NormRow<bf16, 8, NORM_PACKS> from(x + at, columns), gradient(dy + at, columns);
        norm_backward(before, gradient, from, weight, columns, eps, take);
    });
}

#define VALUES(T, t, V)                                                                                                \
    extern "C" __global__ void from_fp8_##t##_##V(T *out, const unsigned char *codes, const float *scales,             \
                                                  int columns, u64 count) {                                            \
        from_fp8<T, V>(out, codes, scales, columns, count);                                                            \
    }                                                                                                                  \
    extern "C" __global__ void add_bias_##t##_##V(T *y, const T *bias, int columns, u64 count) {                       \
        add_bias<T, V>(y, bias, columns, count);                                                                       \
    }
FOR_ALL(VALUES)
