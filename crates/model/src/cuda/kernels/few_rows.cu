// Products of few rows with a frozen weight, out = activation(x wᵀ + bias + plus), for decoding on
// GPUs that copy by themselves (Hopper and later). They take as long as reading the weight, so it
// is read once, as it is held; its first parts are loaded before the kernel before has ended. A
// row's sums depend on the weight's shape alone, not on the other rows or their number.
//
// A cluster of blocks has 64 rows of the weight, and each of its blocks a part of the columns,
// which come in stages. One warp asks for the copies. Eight warps multiply: some have the rows of a
// group of columns, others the same rows of the next group. All groups' sums are added in order.

#define TILE 64
#define MULTIPLIERS 256
#define THREADS (MULTIPLIERS + 32)

// How a weight is held, values in 16 bytes of it, and bytes of a row in a stage.
#define FULL 0
#define INT8 1
#define FP8 2
#define NF4 3
#if FORMAT == FULL
#define EACH 8
#define STAGE_ROW 256
#elif FORMAT == NF4
#define EACH 32
#define STAGE_ROW 128
#else
#define EACH 16
#define STAGE_ROW 256
#endif
#define STAGE_DEPTH (STAGE_ROW / 16 * EACH)
#define STAGE_BYTES (TILE * STAGE_ROW)
// Bytes of a row in a copy. Its pieces of 16 bytes are swapped: piece p of row r lies at p ^ r % 8.
#define COPY_ROW 128
// Groups of four pieces, one for each of the lanes with a row; and tiles of 16 rows of a warp.
#define GROUPS (STAGE_ROW / 64)
#define ROW_TILES (GROUPS / 2)
// Values of an NF4 weight that share a scale.
#define BLOCK 64
#define MOST_STAGES 12

// A matrix in memory, as the copies need it (CUtensorMap).
struct alignas(128) Map {
    u64 words[16];
};

__device__ __forceinline__ u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

// A barrier in shared memory: how often it is arrived at, and for how many bytes it waits.
__device__ __forceinline__ void make_barrier(u32 at, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(u32 at) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(at) : "memory"); }
__device__ __forceinline__ void arrive_and_expect(u32 at, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait(u32 at, u32 parity) {
    asm volatile("{.reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
                 "@!done bra again;}" ::"r"(at), "r"(parity) : "memory");
}
// Copies a part of a matrix, from a column and a row on; the barrier counts the bytes.
__device__ __forceinline__ void copy(u32 to, const Map &from, int column, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(&from), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// A value of a block of the cluster, at the address that it has in this block.
__device__ __forceinline__ float read_of(u32 at, u32 block) {
    u32 there;
    float value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(block));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there) : "memory");
    return value;
}

__device__ __forceinline__ uint4 read16(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}

// The scales of rows (int8, fp8), or of blocks (NF4): plain, or map[code] * absmax + offset.
struct Scales {
    const float *plain;
    const unsigned char *codes;
    const float *absmax, *map, *offset;
};

#if FORMAT == INT8
// Four codes as values, two in each word; exact in both types.
template <typename T> __device__ __forceinline__ void widen4(u32 codes, u32 (&to)[2]);
template <> __device__ __forceinline__ void widen4<bf16>(u32 codes, u32 (&to)[2]) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
        u32 pair = __byte_perm(codes, 0, j ? 0x4342 : 0x4140);
        // 128 + the lower seven bits, less 128 or 256.
        u32 low = (pair & 0x007f007fu) | 0x43004300u, less = (pair & 0x00800080u) | 0xc300c300u;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(to[j]) : "r"(low), "r"(0x3f803f80u), "r"(less));
    }
}
template <> __device__ __forceinline__ void widen4<f16>(u32 codes, u32 (&to)[2]) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
        u32 pair = __byte_perm(codes ^ 0x80808080u, 0x64646464u, j ? 0x4342 : 0x4140);
        asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(to[j]) : "r"(pair), "r"(0x64806480u));
    }
}
#elif FORMAT == FP8
template <typename T> __device__ __forceinline__ void widen4(u32 codes, u32 (&to)[2]);
template <> __device__ __forceinline__ void widen4<bf16>(u32 codes, u32 (&to)[2]) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
        u32 pair = __byte_perm(codes, 0, j ? 0x3424 : 0x1404);
        // The exponents' difference is 2 to the 120.
        u32 bits = (pair & 0x80008000u) | ((pair & 0x7f007f00u) >> 4);
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(to[j]) : "r"(bits), "r"(0x7b807b80u), "r"(0x80008000u));
    }
}
template <> __device__ __forceinline__ void widen4<f16>(u32 codes, u32 (&to)[2]) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
        u32 pair = __byte_perm(codes, 0, j ? 0x3424 : 0x1404);
        // The exponents' difference is 2 to the 8.
        u32 bits = (pair & 0x80008000u) | ((pair & 0x7f007f00u) >> 1);
        asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(to[j]) : "r"(bits), "r"(0x5c005c00u));
    }
}
#elif FORMAT == NF4
// The levels of quant/nf4.rs.
__device__ const float LEVELS[16] = {
    -1.0f,        -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f};

__device__ __forceinline__ float level_at(u32 levels, u32 code) {
    float level;
    asm("ld.shared.f32 %0, [%1];" : "=f"(level) : "r"(levels + code * 128));
    return level;
}
#endif

// Eight values of a lane's 16 bytes, from the i-th on, two in each word.
template <typename T>
__device__ __forceinline__ void eight(const uint4 &held, int i, float scale, u32 levels, u32 (&to)[4]) {
#if FORMAT == FULL
    to[0] = held.x, to[1] = held.y, to[2] = held.z, to[3] = held.w;
#elif FORMAT == NF4
    u32 codes = i == 0 ? held.x : i == 1 ? held.y : i == 2 ? held.z : held.w;
    // The upper half of a byte is the first code.
#pragma unroll
    for (int j = 0; j < 4; j++)
        to[j] = pack2<T>(__fmul_rn(level_at(levels, codes >> (8 * j + 4) & 15), scale),
                         __fmul_rn(level_at(levels, codes >> 8 * j & 15), scale));
#else
    u32 pairs[2];
    widen4<T>(i == 0 ? held.x : held.z, pairs);
    to[0] = pairs[0], to[1] = pairs[1];
    widen4<T>(i == 0 ? held.y : held.w, pairs);
    to[2] = pairs[0], to[3] = pairs[1];
#endif
}

// The first factors of LoRA that the launch computes beside the product, in blocks behind its own:
// of `rows` rows of x, with up to `ranks` ranks, which is 0 without LoRA.
template <typename T> struct Beside {
    const T *x;
    float *shrunk;
    const u64 *adapters;
    int index, rows, ranks;
};

// A block of these.
template <typename T> __device__ __forceinline__ void compute_beside(const Beside<T> &lora, int block, int depth) {
    start_next();
    int task = block * (MULTIPLIERS / 32) + threadIdx.x / 32;
    if (blockIdx.x == 0 && threadIdx.x < MULTIPLIERS && task < lora.rows * lora.ranks)
        lora_a<T>(lora.shrunk, lora.x, lora.adapters, lora.index, depth, task / lora.ranks, task % lora.ranks);
}

// N is a number of tiles of eight rows of x.
template <typename T, int N>
__device__ __forceinline__ void few_rows(T *out, const Map &x, const Map &w, const Scales &scales, const T *bias,
                                         const T *plus, int kind, int columns, int depth, int stages) {
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ __align__(8) u64 barriers[2 * MOST_STAGES];
    constexpr int ROWS = 8 * N;
    constexpr u32 X_COPY = ROWS * COPY_ROW, X_BYTES = STAGE_DEPTH / 64 * X_COPY, W_COPY = TILE * COPY_ROW;
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    u32 rank, ranks;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(ranks));
    int first = blockIdx.z * TILE, all_steps = (depth + STAGE_DEPTH - 1) / STAGE_DEPTH;
    int begin = all_steps * rank / ranks, steps = all_steps * (rank + 1) / ranks - begin;
    u32 weights = shared_address(memory), inputs = weights + stages * STAGE_BYTES;
    u32 full = shared_address(barriers), empty = full + 8 * MOST_STAGES;
    if (thread == MULTIPLIERS) {
        for (int stage = 0; stage < stages; stage++) {
            make_barrier(full + 8 * stage, 1);
            make_barrier(empty + 8 * stage, MULTIPLIERS / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (FORMAT != FULL) start_next();

    float sums[ROW_TILES][N][4];
    int g = lane / 4, t = lane % 4, group = warp % GROUPS, tile_row = warp / GROUPS * 16 * ROW_TILES;
    // So that lanes that read at once have separate banks.
    int w_row = g / 2 + g % 2 * 4, x_row = FORMAT == FULL ? w_row : g;
    if (warp == MULTIPLIERS / 32) {
        if (lane == 0) {
            auto copy_weight = [&](int step, int stage) {
                arrive_and_expect(full + 8 * stage, STAGE_BYTES + X_BYTES);
#pragma unroll
                for (int part = 0; part < STAGE_ROW / COPY_ROW; part++)
                    copy(weights + stage * STAGE_BYTES + part * W_COPY, w,
                         (begin + step) * STAGE_ROW / (FORMAT == FULL ? 2 : 1) + part * COPY_ROW / (FORMAT == FULL ? 2 : 1), first,
                         full + 8 * stage);
            };
            auto copy_x = [&](int step, int stage) {
#pragma unroll
                for (int part = 0; part < STAGE_DEPTH / 64; part++)
                    copy(inputs + stage * X_BYTES + part * X_COPY, x, (begin + step) * STAGE_DEPTH + part * 64, blockIdx.y * ROWS,
                         full + 8 * stage);
            };
            int ahead = min(stages, steps);
            for (int step = 0; step < ahead; step++) copy_weight(step, step);
            wait_for_results();
            for (int step = 0; step < ahead; step++) copy_x(step, step);
            for (int step = ahead, stage = 0, parity = 0; step < steps; step++) {
                wait(empty + 8 * stage, parity);
                copy_weight(step, stage), copy_x(step, stage);
                if (++stage == stages) stage = 0, parity ^= 1;
            }
            // Not before, because the next kernel's copies would compete with these.
            if (FORMAT == FULL) start_next();
        }
        __syncwarp();
    } else {
#if FORMAT == NF4
        float *levels_at = reinterpret_cast<float *>(memory + stages * (STAGE_BYTES + X_BYTES)), *own_scales = levels_at + 16 * 32;
        for (int i = thread; i < 16 * 32; i += MULTIPLIERS) levels_at[i] = LEVELS[i / 32];
        u32 levels = shared_address(levels_at) + lane * 4;
        int blocks = depth / BLOCK, first_block = begin * (STAGE_DEPTH / BLOCK), own_blocks = steps * (STAGE_DEPTH / BLOCK);
        for (int i = thread; i < TILE * own_blocks; i += MULTIPLIERS) {
            int row = i / own_blocks, block = i % own_blocks;
            u64 at = (u64)(first + row) * blocks + first_block + block;
            float scale = 0;
            if (first + row < columns && first_block + block < blocks)
                scale = scales.plain ? scales.plain[at]
                                     : __fadd_rn(__fmul_rn(scales.map[scales.codes[at]], scales.absmax[at / 256]), *scales.offset);
            own_scales[block * (TILE + 4) + row] = scale;
        }
        asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLIERS) : "memory");
#else
        u32 levels = 0;
#endif
        // Waits here, because waiting for the copies of x would take issue slots of the other
        // kernel.
        wait_for_results();
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[m][n][j] = 0;
        u32 held_at = weights + group / 2 * W_COPY + (tile_row + w_row) * COPY_ROW + ((group % 2 * 4 + t) ^ w_row) * 16;
        for (int step = 0, stage = 0, parity = 0; step < steps; step++) {
            wait(full + 8 * stage, parity);
            uint4 held[2 * ROW_TILES];
            float scale[2 * ROW_TILES];
#pragma unroll
            for (int j = 0; j < 2 * ROW_TILES; j++) {
                held[j] = read16(held_at + stage * STAGE_BYTES + 8 * j * COPY_ROW);
                scale[j] = 1;
#if FORMAT == NF4
                scale[j] = own_scales[((step * (STAGE_ROW / 16) + group * 4 + t) * EACH / BLOCK) * (TILE + 4) + tile_row + w_row + 8 * j];
                // Half of the lanes begin with their later values, for separate banks of x.
                if (t & 2) held[j] = {held[j].z, held[j].w, held[j].x, held[j].y};
#endif
            }
#pragma unroll
            for (int i = 0; i < EACH / 8; i++) {
                u32 values[2 * ROW_TILES][4];
#pragma unroll
                for (int j = 0; j < 2 * ROW_TILES; j++) eight<T>(held[j], i, scale[j], levels, values[j]);
                int piece = (group * 4 + t) * (EACH / 8) + (FORMAT == NF4 ? i ^ (t & 2) : i);
                u32 x_at = inputs + stage * X_BYTES + piece / 8 * X_COPY + x_row * COPY_ROW + (piece % 8 ^ x_row) * 16;
#pragma unroll
                for (int n = 0; n < N; n++) {
                    uint4 b = read16(x_at + n * 8 * COPY_ROW);
#pragma unroll
                    for (int m = 0; m < ROW_TILES; m++) {
                        const u32(&low)[4] = values[2 * m], (&high)[4] = values[2 * m + 1];
                        const u32 left[4] = {low[0], high[0], low[1], high[1]}, right[4] = {low[2], high[2], low[3], high[3]};
                        multiply<T>(sums[m][n], left, b.x, b.y);
                        multiply<T>(sums[m][n], right, b.z, b.w);
                    }
                }
            }
            __syncwarp();
            if (lane == 0) arrive(empty + 8 * stage);
            if (++stage == stages) stage = 0, parity ^= 1;
        }
    }
    __syncthreads();

    // (group, row of x, row of the weight); the padding keeps the lanes in separate banks.
    constexpr int WIDTH = TILE + 4;
    if (warp < MULTIPLIERS / 32) {
        float *shared = reinterpret_cast<float *>(memory);
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    // The products' column 2 t + j is this row of x.
                    int column = 2 * t + j % 2, row = FORMAT == FULL ? column / 2 + column % 2 * 4 : column;
                    shared[(group * ROWS + n * 8 + row) * WIDTH + tile_row + w_row + 16 * m + j / 2 * 8] = sums[m][n][j];
                }
    }
    if (ranks > 1) meet_cluster();
    else __syncthreads();
    // The summand and the result are of kernels before, too.
    wait_for_results();
    int column = first + thread % TILE;
    if (thread < MULTIPLIERS && column < columns) {
        float factor = 1, added = bias ? widen(bias[column]) : 0;
#if FORMAT == INT8
        factor = __fmul_rn(scales.plain[column], 1.0f / 127.0f);
#elif FORMAT == FP8
        factor = scales.plain[column];
#endif
        for (int row = thread / TILE + rank * (MULTIPLIERS / TILE); row < ROWS; row += ranks * (MULTIPLIERS / TILE)) {
            float sum = 0;
            u32 at = shared_address(memory) + (row * WIDTH + thread % TILE) * 4;
            for (u32 block = 0; block < ranks; block++)
#pragma unroll
                for (int k = 0; k < GROUPS; k++) sum += read_of(at + k * ROWS * WIDTH * 4, block);
            u64 to = ((u64)blockIdx.y * ROWS + row) * columns + column;
            sum = sum * factor + added;
            if (plus) sum += widen(plus[to]);
            if (kind >= 0) {
                float v[1] = {rounded<T>(sum)}, y[1], slope[1];
                activations<1>(kind, v, y, slope);
                sum = y[0];
            }
            out[to] = narrow<T>(sum);
        }
    }
    // No block ends while another may read its memory.
    if (ranks > 1) meet_cluster();
}

#define KERNEL(T, t, N, f)                                                                                             \
    extern "C" __global__ __launch_bounds__(THREADS, N < 8 ? 2 : 1) void few_rows_##f##_##t##_##N(                    \
        const __grid_constant__ Map x, const __grid_constant__ Map w, T *out, const float *plain,                      \
        const unsigned char *codes, const float *absmax, const float *map, const float *offset, const T *bias,         \
        const T *plus, int kind, int columns, int depth, int stages, const T *lora_x, float *shrunk,                   \
        const u64 *adapters, int index, int lora_rows, int ranks) {                                                    \
        int tiles = (columns + TILE - 1) / TILE;                                                                       \
        if ((int)blockIdx.z >= tiles) {                                                                                \
            Beside<T> lora{lora_x, shrunk, adapters, index, lora_rows, ranks};                                         \
            return compute_beside(lora, ((int)blockIdx.z - tiles) * gridDim.y + blockIdx.y, depth);                    \
        }                                                                                                              \
        Scales scales{plain, codes, absmax, map, offset};                                                              \
        few_rows<T, N>(out, x, w, scales, bias, plus, kind, columns, depth, stages);                                   \
    }
#define KERNELS(T, t) KERNEL_OF(T, t, 1) KERNEL_OF(T, t, 4) KERNEL_OF(T, t, 8)
#if FORMAT == FULL
#define KERNEL_OF(T, t, N) KERNEL(T, t, N, full)
#elif FORMAT == INT8
#define KERNEL_OF(T, t, N) KERNEL(T, t, N, int8)
#elif FORMAT == FP8
#define KERNEL_OF(T, t, N) KERNEL(T, t, N, fp8)
#else
#define KERNEL_OF(T, t, N) KERNEL(T, t, N, nf4)
#endif
KERNELS(bf16, bf16)
KERNELS(f16, f16)
