// Attention of bf16 by tiles of 64 rows, on the matrix units: a warp has 16 rows of a tile, sums stay in registers.
// Heads of up to D values, a multiple of 8. A tile is (first row, end, start and end of its sequence). No sum depends on timing:
// queries' gradients are summed over keys by one block, and keys' over queries by another, which makes the scores again.

#define TILE 64

__device__ __forceinline__ u32 pack2(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ void read4(u32 (&r)[4], const bf16 *at) {
    u32 address = (u32)__cvta_generic_to_shared(at);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ __forceinline__ void read4_turned(u32 (&r)[4], const bf16 *at) {
    u32 address = (u32)__cvta_generic_to_shared(at);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// c += a b for 16 x 16 by 16 x 8.
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A tile in shared memory; the padding spreads its rows over all banks.
template <int D> struct Tile {
    bf16 at[TILE * (D + 8)];

    // Rows from `first` up to `end` of a matrix, zeros behind and beside them.
    __device__ __forceinline__ void fill(const bf16 *from, u64 stride, int first, int end, int dim) {
        for (int i = threadIdx.x; i < TILE * (D / 8); i += blockDim.x) {
            int row = i / (D / 8), column = i % (D / 8) * 8;
            uint4 values = make_uint4(0, 0, 0, 0);
            if (first + row < end && column < dim)
                values = *reinterpret_cast<const uint4 *>(from + (first + row) * stride + column);
            *reinterpret_cast<uint4 *>(at + row * (D + 8) + column) = values;
        }
    }

    // 16 x 16 values as a left factor.
    __device__ __forceinline__ void left(u32 (&r)[4], int row, int column) const {
        int lane = threadIdx.x % 32;
        read4(r, at + (row + lane % 16) * (D + 8) + column + lane / 16 * 8);
    }

    // 16 rows x 16 columns as two right factors of which each row is a column.
    __device__ __forceinline__ void right_of_rows(u32 (&r)[4], int row, int column) const {
        int lane = threadIdx.x % 32;
        read4(r, at + (row + lane % 8 + lane / 16 * 8) * (D + 8) + column + lane / 8 % 2 * 8);
    }

    // 16 x 16 values as two right factors, as they lie.
    __device__ __forceinline__ void right(u32 (&r)[4], int row, int column) const {
        int lane = threadIdx.x % 32;
        read4_turned(r, at + (row + lane % 8 + lane / 8 % 2 * 8) * (D + 8) + column + lane / 16 * 8);
    }
};

// c += a times 16 rows of a tile, over all D columns.
template <int D> __device__ __forceinline__ void add_rows(float (&c)[D / 8][4], const u32 (&a)[4], const Tile<D> &tile, int row) {
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        u32 b[4];
        tile.right(b, row, n * 16);
        multiply(c[2 * n], a, b[0], b[1]);
        multiply(c[2 * n + 1], a, b[2], b[3]);
    }
}

// Scores of a warp's 16 rows with 16 rows of a tile.
template <int D> __device__ __forceinline__ void scores(float (&s)[2][4], const u32 (&a)[D / 16][4], const Tile<D> &tile, int row) {
#pragma unroll
    for (int i = 0; i < 4; i++) s[0][i] = s[1][i] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 b[4];
        tile.right_of_rows(b, row, k * 16);
        multiply(s[0], a[k], b[0], b[1]);
        multiply(s[1], a[k], b[2], b[3]);
    }
}

// The pairs of 16 x 16 scores as a left factor.
__device__ __forceinline__ void as_left(u32 (&a)[4], const float (&s)[2][4]) {
    a[0] = pack2(s[0][0], s[0][1]), a[1] = pack2(s[0][2], s[0][3]);
    a[2] = pack2(s[1][0], s[1][1]), a[3] = pack2(s[1][2], s[1][3]);
}

// Writes a warp's 16 rows, each times a factor.
template <int D>
__device__ __forceinline__ void write(bf16 *to, u64 stride, const float (&c)[D / 8][4], int row, int end, int dim, float upper, float lower) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        int d = n * 8 + 2 * t;
        if (d >= dim) continue;
        if (row + g < end) *reinterpret_cast<u32 *>(to + (row + g) * stride + d) = pack2(c[n][0] * upper, c[n][1] * upper);
        if (row + g + 8 < end) *reinterpret_cast<u32 *>(to + (row + g + 8) * stride + d) = pack2(c[n][2] * lower, c[n][3] * lower);
    }
}

#define PLACE()                                                                                                        \
    uint4 tile = tiles[blockIdx.x];                                                                                    \
    int first = tile.x, last = tile.y, start = tile.z, end = tile.w, head = blockIdx.y;                                \
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, own = first + warp * 16;         \
    u64 third = (u64)heads * rows * dim, base = (u64)head * rows * dim, width = (u64)heads * dim;                      \
    const bf16 *q = parts + base, *k = q + third, *v = k + third;                                                      \
    float scale = rsqrtf((float)dim);

template <int D>
__device__ void forward(bf16 *out, float *log_sums, const bf16 *parts, const uint4 *tiles, int rows, int heads, int dim) {
    __shared__ Tile<D> keys, values;
    PLACE()
    u32 query[D / 16][4], a[4];
    keys.fill(q, dim, first, last, dim);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < D / 16; i++) keys.left(query[i], warp * 16, i * 16);
    float o[D / 8][4] = {0}, most[2], sum[2] = {0, 0};
    most[0] = most[1] = __int_as_float(0xff800000);
    for (int key0 = start; key0 < last; key0 += TILE) {
        __syncthreads();
        keys.fill(k, dim, key0, last, dim);
        values.fill(v, dim, key0, last, dim);
        __syncthreads();
        float s[4][2][4];
#pragma unroll
        for (int c = 0; c < 4; c++) scores<D>(s[c], query, keys, c * 16);
        float next[2] = {most[0], most[1]};
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float &x = s[i / 8][i / 4 % 2][i % 4];
            int key = key0 + i / 4 * 8 + 2 * t + i % 2, h = i / 2 % 2;
            x = key <= own + g + 8 * h ? x * scale : __int_as_float(0xff800000);
            next[h] = fmaxf(next[h], x);
        }
        float keep[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            next[h] = fmaxf(next[h], __shfl_xor_sync(0xffffffffu, next[h], 1));
            next[h] = fmaxf(next[h], __shfl_xor_sync(0xffffffffu, next[h], 2));
            keep[h] = __expf(most[h] - next[h]);
            most[h] = next[h];
            sum[h] *= keep[h];
        }
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float &x = s[i / 8][i / 4 % 2][i % 4];
            x = __expf(x - most[i / 2 % 2]);
            sum[i / 2 % 2] += x;
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            o[n][0] *= keep[0], o[n][1] *= keep[0];
            o[n][2] *= keep[1], o[n][3] *= keep[1];
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            as_left(a, s[c]);
            add_rows<D>(o, a, values, c * 16);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
        int row = own + g + 8 * h;
        if (t == 0 && row < last) log_sums[(u64)head * rows + row] = most[h] + __logf(sum[h]);
    }
    write<D>(out + head * dim, width, o, own, last, dim, 1.0f / sum[0], 1.0f / sum[1]);
}

// The gradient of queries.
template <int D>
__device__ void queries(bf16 *d_parts, const bf16 *parts, const bf16 *d_out, const float *log_sums, const float *deltas,
                        const uint4 *tiles, int rows, int heads, int dim) {
    __shared__ Tile<D> keys, values;
    PLACE()
    u32 query[D / 16][4], d_row[D / 16][4], a[4];
    keys.fill(q, dim, first, last, dim);
    values.fill(d_out + head * dim, width, first, last, dim);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < D / 16; i++) keys.left(query[i], warp * 16, i * 16), values.left(d_row[i], warp * 16, i * 16);
    float lse[2], delta[2], d_query[D / 8][4] = {0};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u64 at = (u64)head * rows + min(own + g + 8 * h, last - 1);
        lse[h] = log_sums[at], delta[h] = deltas[at];
    }
    for (int key0 = start; key0 < last; key0 += TILE) {
        __syncthreads();
        keys.fill(k, dim, key0, last, dim);
        values.fill(v, dim, key0, last, dim);
        __syncthreads();
        for (int c = 0; c < 4; c++) {
            if (key0 + c * 16 > own + 15) break;
            float s[2][4], dp[2][4];
            scores<D>(s, query, keys, c * 16);
            scores<D>(dp, d_row, values, c * 16);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int key = key0 + c * 16 + i / 4 * 8 + 2 * t + i % 2, h = i / 2 % 2;
                float p = key <= own + g + 8 * h ? __expf(s[i / 4][i % 4] * scale - lse[h]) : 0.0f;
                s[i / 4][i % 4] = p * (dp[i / 4][i % 4] - delta[h]) * scale;
            }
            as_left(a, s);
            add_rows<D>(d_query, a, keys, c * 16);
        }
    }
    write<D>(d_parts + base, dim, d_query, own, last, dim, 1.0f, 1.0f);
}

// The gradients of keys and values: here the scores' rows are keys.
template <int D>
__device__ void keys_and_values(bf16 *d_parts, const bf16 *parts, const bf16 *d_out, const float *log_sums,
                                const float *deltas, const uint4 *tiles, int rows, int heads, int dim) {
    __shared__ Tile<D> asking, d_rows;
    PLACE()
    u32 key[D / 16][4], value[D / 16][4], a[4];
    asking.fill(k, dim, first, last, dim);
    d_rows.fill(v, dim, first, last, dim);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < D / 16; i++) asking.left(key[i], warp * 16, i * 16), d_rows.left(value[i], warp * 16, i * 16);
    float d_key[D / 8][4] = {0}, d_value[D / 8][4] = {0};
    for (int query0 = first; query0 < end; query0 += TILE) {
        __syncthreads();
        asking.fill(q, dim, query0, end, dim);
        d_rows.fill(d_out + head * dim, width, query0, end, dim);
        __syncthreads();
        for (int c = 0; c < 4; c++) {
            int from = query0 + c * 16;
            if (from >= end) break;
            if (from + 15 < own) continue;
            float s[2][4], dp[2][4];
            scores<D>(s, key, asking, c * 16);
            scores<D>(dp, value, d_rows, c * 16);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int query = from + i / 4 * 8 + 2 * t + i % 2;
                u64 at = (u64)head * rows + min(query, end - 1);
                bool sees = query < end && query >= own + g + 8 * (i / 2 % 2);
                float p = sees ? __expf(s[i / 4][i % 4] * scale - log_sums[at]) : 0.0f;
                s[i / 4][i % 4] = p;
                dp[i / 4][i % 4] = p * (dp[i / 4][i % 4] - deltas[at]) * scale;
            }
            as_left(a, s);
            add_rows<D>(d_value, a, d_rows, c * 16);
            as_left(a, dp);
            add_rows<D>(d_key, a, asking, c * 16);
        }
    }
    write<D>(d_parts + base + third, dim, d_key, own, last, dim, 1.0f, 1.0f);
    write<D>(d_parts + base + 2 * third, dim, d_value, own, last, dim, 1.0f, 1.0f);
}

// Each row's sum of output times its gradient, head by head: a warp has one.
extern "C" __global__ void tile_deltas(float *deltas, const bf16 *out, const bf16 *d_out, int rows, int heads, int dim) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, head = blockIdx.y, lane = threadIdx.x % 32;
    if (row >= rows) return;
    u64 at = ((u64)row * heads + head) * dim;
    float sum = 0;
    for (int d = lane; d < dim; d += 32) sum += widen(out[at + d]) * widen(d_out[at + d]);
    sum = warp_sum(sum);
    if (lane == 0) deltas[(u64)head * rows + row] = sum;
}

#define KERNELS(D)                                                                                                     \
    extern "C" __global__ __launch_bounds__(128) void tile_forward_##D(                                                \
        bf16 *out, float *log_sums, const bf16 *parts, const uint4 *tiles, int rows, int heads, int dim) {             \
        forward<D>(out, log_sums, parts, tiles, rows, heads, dim);                                                     \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(128) void tile_queries_##D(                                                \
        bf16 *d_parts, const bf16 *parts, const bf16 *d_out, const float *log_sums, const float *deltas,               \
        const uint4 *tiles, int rows, int heads, int dim) {                                                            \
        queries<D>(d_parts, parts, d_out, log_sums, deltas, tiles, rows, heads, dim);                                  \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(128) void tile_keys_and_values_##D(                                        \
        bf16 *d_parts, const bf16 *parts, const bf16 *d_out, const float *log_sums, const float *deltas,               \
        const uint4 *tiles, int rows, int heads, int dim) {                                                            \
        keys_and_values<D>(d_parts, parts, d_out, log_sums, deltas, tiles, rows, heads, dim);                          \
    }
KERNELS(64)
KERNELS(128)
