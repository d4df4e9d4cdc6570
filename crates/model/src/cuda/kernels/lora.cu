// LoRA's products of 16-bit floats, compiled for one rank. Each kernel reads the wide matrix once,
// 16 bytes per lane. The depth of a product may be permuted, if it is permuted in both factors; its
// columns may be permuted as well. A lane therefore uses its 8 consecutive values directly as parts
// of several factors, and only sums go through shared memory. No sum depends on timing.

__device__ __forceinline__ uint4 read16(const void *from, bool real) {
    return real ? *reinterpret_cast<const uint4 *>(from) : make_uint4(0, 0, 0, 0);
}

template <typename H> __device__ __forceinline__ u32 read_pair(const H *from, bool real) {
    return real ? *reinterpret_cast<const u32 *>(from) : 0;
}

// Dropout's mask, as in dropout.rs; a null pointer means no mask.
struct Mask {
    const u64 *rows;
    u64 key;
    u32 threshold;
    float scale;
};

// The state of a row's stream at an even channel; each pair of channels advances it by GOLDEN.
__device__ __forceinline__ u64 state_at(u64 stream, int channel) { return stream + (u64)((u32)channel / 2 + 1) * GOLDEN; }

// Masks two channels.
__device__ __forceinline__ void mask_pair(float &low, float &high, u64 state, const Mask &mask) {
    u64 bits = mix(state);
    low = (u32)bits >= mask.threshold ? low * mask.scale : 0.0f;
    high = (u32)(bits >> 32) >= mask.threshold ? high * mask.scale : 0.0f;
}

template <typename H> __device__ __forceinline__ u32 masked_pair(u32 pair, u64 state, const Mask &mask) {
    H halves[2];
    halves[0].bits = pair, halves[1].bits = pair >> 16;
    float low = widen(halves[0]), high = widen(halves[1]);
    mask_pair(low, high, state, mask);
    return pack2<H>(low, high);
}

// Pieces of a row that are loaded before the first of them is used.
#define AHEAD 4

// Forward of A: out = x wᵀ, (rows, depth) by (R, depth); with a mask, x is masked first, and the
// masked x is written as well. Backward of B: out = x w, (rows, depth) by (depth, R). A block has
// 16 rows; its eight warps alternate along the depth, a multiple of 32.
template <typename H, int R, bool BACKWARD>
__device__ void to_rank(H *__restrict__ out, H *__restrict__ masked, const H *__restrict__ x, const H *__restrict__ w,
                       Mask mask, int rows, int depth) {
    __shared__ float parts[8][16][R];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, row = blockIdx.x * 16 + g;
    bool real[2] = {row < rows, row + 8 < rows}, masking = !BACKWARD && mask.rows;
    u64 at[2] = {(u64)row * depth + t * 8, (u64)(row + 8) * depth + t * 8}, streams[2];
#pragma unroll
    for (int h = 0; h < 2; h++) streams[h] = masking && real[h] ? derive(mask.key, mask.rows[row + 8 * h]) : 0;
    float c[R / 8][4] = {0};
    for (int first = warp * 32; first < depth; first += AHEAD * 8 * 32) {
        uint4 read[AHEAD][2];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int k = first + i * 8 * 32;
#pragma unroll
            for (int h = 0; h < 2; h++) read[i][h] = read16(x + at[h] + k, real[h] && k < depth);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int k = first + i * 8 * 32;
            if (k >= depth) break;
            u32 v[2][4];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                v[h][0] = read[i][h].x, v[h][1] = read[i][h].y, v[h][2] = read[i][h].z, v[h][3] = read[i][h].w;
                if (!masking) continue;
                u64 state = state_at(streams[h], k + t * 8);
#pragma unroll
                for (int j = 0; j < 4; j++) v[h][j] = masked_pair<H>(v[h][j], state + j * GOLDEN, mask);
                if (real[h])
                    *reinterpret_cast<uint4 *>(masked + at[h] + k) = make_uint4(v[h][0], v[h][1], v[h][2], v[h][3]);
            }
#pragma unroll
            for (int q = 0; q < R / 8; q++) {
                u32 b[4];
                if (BACKWARD) {
                    const H *from = w + (u64)(k + g / 2 * 8 + g % 2) * R + q * 8 + 2 * t;
#pragma unroll
                    for (int j = 0; j < 4; j++) b[j] = transposed(read_pair(from + 2 * j * R, true));
                } else {
                    uint4 read = read16(w + (u64)(q * 8 + g) * depth + k + t * 8, true);
                    b[0] = read.x, b[1] = read.y, b[2] = read.z, b[3] = read.w;
                }
#pragma unroll
                for (int j = 0; j < 4; j += 2) {
                    u32 a[4] = {v[0][j], v[1][j], v[0][j + 1], v[1][j + 1]};
                    multiply<H>(c[q], a, b[j], b[j + 1]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < R / 2; i++) parts[warp][g + i / 2 % 2 * 8][i / 4 * 8 + 2 * t + i % 2] = c[i / 4][i % 4];
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * R; i += blockDim.x) {
        float sum = 0;
        for (int from = 0; from < 8; from++) sum += parts[from][i / R][i % R];
        u64 to = (u64)blockIdx.x * 16 * R + i;
        if (to < (u64)rows * R) out[to] = narrow<H>(sum);
    }
}

// Forward of B: y += scale * s wᵀ, (rows, R) by (columns, R). Backward of A: y += scale * s w,
// (rows, R) by (R, columns), masked if there is a mask. A block has 64 rows, and a warp 32 of their
// columns. The number of columns is a multiple of 8.
template <typename H, int R, bool BACKWARD>
__device__ void from_rank(H *y, const H *__restrict__ s, const H *__restrict__ w, Mask mask, int rows, int columns,
                       float scale) {
    constexpr int DEPTHS = (R + 15) / 16;
    __shared__ u64 streams[64];
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, column = (blockIdx.x * 8 + threadIdx.x / 32) * 32;
    bool masking = BACKWARD && mask.rows;
    if (masking) {
        int row = blockIdx.y * 64 + threadIdx.x;
        if (threadIdx.x < 64 && row < rows) streams[threadIdx.x] = derive(mask.key, mask.rows[row]);
        __syncthreads();
    }
    if (column >= columns) return;
    u32 b[DEPTHS][4][2] = {0};
#pragma unroll
    for (int q = 0; q < R / 8; q++) {
        if (BACKWARD) {
            uint4 read = read16(w + (u64)(q * 8 + g) * columns + column + t * 8, column + t * 8 < columns);
            u32 v[4] = {read.x, read.y, read.z, read.w};
#pragma unroll
            for (int j = 0; j < 4; j++) b[q / 2][j][q % 2] = transposed(v[j]);
        } else {
            const H *from = w + (u64)(column + g / 2 * 8 + g % 2) * R + q * 8 + 2 * t;
#pragma unroll
            for (int j = 0; j < 4; j++) b[q / 2][j][q % 2] = read_pair(from + 2 * j * R, column + g / 2 * 8 < columns);
        }
    }
    bool inside = column + t * 8 < columns;
    column += t * 8;
    uint4 before[4][2];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int row = blockIdx.y * 64 + i * 8 + g;
        before[i / 2][i % 2] = read16(y + (u64)row * columns + column, row < rows && inside);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = blockIdx.y * 64 + i * 16 + g;
        if (row - g >= rows) break;
        float c[4][4] = {0};
#pragma unroll
        for (int k = 0; k < DEPTHS; k++) {
            u32 a[4];
#pragma unroll
            for (int h = 0; h < 4; h++) {
                int of = row + h % 2 * 8, from = k * 16 + h / 2 * 8;
                a[h] = read_pair(s + (u64)of * R + from + 2 * t, of < rows && from < R);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) multiply<H>(c[j], a, b[k][j][0], b[k][j][1]);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int of = row + 8 * h;
            if (of >= rows || !inside) continue;
            u64 state = masking ? state_at(streams[i * 16 + g + 8 * h], column) : 0;
            float v[8];
            Pack<H, 8> pack = *reinterpret_cast<Pack<H, 8> *>(&before[i][h]);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float low = c[j][2 * h], high = c[j][2 * h + 1];
                if (masking) mask_pair(low, high, state + j * GOLDEN, mask);
                v[2 * j] = widen(pack.at[2 * j]) + scale * low;
                v[2 * j + 1] = widen(pack.at[2 * j + 1]) + scale * high;
            }
            store<8>(y + (u64)of * columns + column, v);
        }
    }
}

// out += scale * xᵀ s, (rows, columns) by (rows, rank); `out` is f32 and has two strides. A lane
// reads C columns of a row. A block has 8 C columns and R of the rank; its 32 warps alternate along
// the rows.
template <typename H, int R, int C>
__device__ void gradient(float *out, const H *__restrict__ x, const H *__restrict__ s, int rows, int columns, int rank,
                         int column_stride, int rank_stride, float scale) {
    // The padding spreads a warp's sums over the banks.
    __shared__ float parts[8][8 * C][R + 1];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int column = (blockIdx.x * 8 + g) * C;
    bool inside = column < columns;
    s += blockIdx.y * R;
    float c[C / 2][R / 8][4] = {0};
    constexpr int STEPS = R == 8 ? 2 : 1;
    for (int first = warp * 16; first < rows; first += STEPS * 32 * 16) {
        u32 v[STEPS][4][C / 2], pairs[STEPS][R / 4];
#pragma unroll
        for (int n = 0; n < STEPS; n++) {
            int row = first + n * 32 * 16;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int of = row + 4 * t + i;
                Pack<u32, C / 2> read = {};
                if (inside && of < rows) read = *reinterpret_cast<const Pack<u32, C / 2> *>(x + (u64)of * columns + column);
#pragma unroll
                for (int j = 0; j < C / 2; j++) v[n][i][j] = read.at[j];
            }
#pragma unroll
            for (int i = 0; i < R / 4; i++) {
                int of = row + g / 2 * 4 + g % 2 + i % 2 * 2;
                pairs[n][i] = read_pair(s + (u64)of * rank + i / 2 * 8 + 2 * t, of < rows);
            }
        }
#pragma unroll
        for (int n = 0; n < STEPS; n++) {
            u32 b[R / 4];
#pragma unroll
            for (int i = 0; i < R / 4; i++) b[i] = transposed(pairs[n][i]);
#pragma unroll
            for (int m = 0; m < C / 2; m++) {
                // Two columns of two rows each.
                u32 a[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    a[i] = __byte_perm(v[n][i / 2 * 2][m], v[n][i / 2 * 2 + 1][m], i % 2 ? 0x7632 : 0x5410);
#pragma unroll
                for (int q = 0; q < R / 8; q++) multiply<H>(c[m][q], a, b[2 * q], b[2 * q + 1]);
            }
        }
    }
    for (int step = 0; step < 4; step++) {
        if (warp / 8 == step) {
#pragma unroll
            for (int i = 0; i < C * R / 4; i++) {
                int m = i / (R / 2), q = i / 4 % (R / 8);
                float &part = parts[warp % 8][g * C + 2 * m + i / 2 % 2][q * 8 + 2 * t + i % 2];
                part = step ? part + c[m][q][i % 4] : c[m][q][i % 4];
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < 8 * C * R; i += blockDim.x) {
        int of = blockIdx.x * 8 * C + i / R;
        if (of >= columns) break;
        float sum = 0;
        for (int from = 0; from < 8; from++) sum += parts[from][i / R][i % R];
        out[(u64)of * column_stride + (u64)(blockIdx.y * R + i % R) * rank_stride] += scale * sum;
    }
}

#define PRODUCTS(H, R, BACKWARD, to, from)                                                                             \
    extern "C" __global__ __launch_bounds__(256, R <= 16 ? 3 : 2) void to##_##H##_##R(                                 \
        H *out, H *masked, const H *x, const H *w, const u64 *mask_rows, u64 key, u32 threshold, float mask_scale,     \
        int rows, int depth) {                                                                                         \
        to_rank<H, R, BACKWARD>(out, masked, x, w, {mask_rows, key, threshold, mask_scale}, rows, depth);              \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(256) void from##_##H##_##R(                                                \
        H *y, const H *s, const H *w, const u64 *mask_rows, u64 key, u32 threshold, float mask_scale, int rows,        \
        int columns, float scale) {                                                                                    \
        from_rank<H, R, BACKWARD>(y, s, w, {mask_rows, key, threshold, mask_scale}, rows, columns, scale);             \
    }
#if RANK <= 16
#define GRADIENTS(H, R, C)                                                                                             \
    extern "C" __global__ __launch_bounds__(1024) void lora_gradient_##H##_##C##_##R(                                  \
        float *out, const H *x, const H *s, int rows, int columns, int rank, int column_stride, int rank_stride,       \
        float scale) {                                                                                                 \
        gradient<H, R, C>(out, x, s, rows, columns, rank, column_stride, rank_stride, scale);                          \
    }
#else
#define GRADIENTS(H, R, C)
#endif

#define KERNELS(H, R)                                                                                                  \
    PRODUCTS(H, R, false, lora_a, lora_b)                                                                              \
    PRODUCTS(H, R, true, lora_b_backward, lora_a_backward)                                                             \
    GRADIENTS(H, R, 4)                                                                                                 \
    GRADIENTS(H, R, 8)
KERNELS(bf16, RANK)
KERNELS(f16, RANK)
