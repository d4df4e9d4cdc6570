// Attention of 16-bit floats on the matrix units, over the joint product (rows, heads, 3, dim) with
// rotated queries and keys.
//
// A block has a tile of R rows of a sequence, and a warp 16 of them, whose sums stay in registers.
// The rows on the other side of the attention are loaded 32 at a time, several loads ahead of the
// computation. Heads have up to D values, a multiple of 8. A tile is described by its first row,
// its end, and the start and end of its sequence; with keys in pages by its first row, its end, its
// sequence's number, and how many more tokens of the sequence come before a row than the pass has
// rows before it.
//
// No sum depends on timing: one block sums the gradient of queries over keys, another that of keys
// and values over queries, for which it computes the scores again.

// Declares a block's tile; the rows of a lane, own + g and own + g + 8, and its pairs of columns
// from 2 t on; `span`, the first of the rows that are multiplied together with the lane's.
#define TILE()                                                                                                         \
    uint4 tile = tiles[blockIdx.y];                                                                                    \
    int first = tile.x, last = tile.y, start = tile.z, head = blockIdx.x;                                              \
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, own = first + threadIdx.x % (2 * R) / 32 * 16;            \
    int span = first + threadIdx.x % (2 * R) / (2 * SPAN) * SPAN;                                                      \
    u64 width = (u64)heads * dim, joint = 3 * width;                                                                   \
    const H *q = qkv + 3 * head * dim, *k = q + dim, *v = k + dim;                                                     \
    const float factor = rsqrtf((float)dim);

// Shared memory: one or two tiles of the block's own rows, then S stages of two tiles of 32 rows,
// then the rest.
#define OWN(i) ((i) * 2 * R * D)
#define STAGE(owned, step, i) (OWN(owned) + (2 * ((step) % S) + (i)) * 2 * STEP * D)
#define BEHIND(owned) (OWN(owned) + S * 4 * STEP * D)

// The first groups of copies: the block's own rows with the first stage, then the stages ahead.
#define PREFETCH()                                                                                                     \
    load_step(0);                                                                                                      \
    commit();                                                                                                          \
    for (int ahead = 1; ahead < S - 1; ahead++) {                                                                      \
        load_step(ahead);                                                                                              \
        commit();                                                                                                      \
    }

// Begins a step: its rows have arrived. All threads have finished the step before, so that its
// stage is loaded again.
#define NEXT_STEP()                                                                                                    \
    wait_for_copies<S - 2>();                                                                                          \
    load_step(step + S - 1);                                                                                           \
    commit();

// The keys and values of the rows' own sequence, which are all in the pass: a row's key has the
// row's number.
template <typename H, int D, int R> struct JointKeys {
    const H *k, *v;
    u64 stride;
    int begin;

    // The number of a row's key.
    __device__ __forceinline__ int key_of(int row) const { return row; }

    __device__ __forceinline__ void load(int keys, int values, int from, int end, int dim) const {
        copy_rows<2 * R, D, STEP>(keys, k, stride, from, end, dim);
        copy_rows<2 * R, D, STEP>(values, v, stride, from, end, dim);
    }
};

// The keys and values of a layer and a head in a sequence's pages, of STEP tokens each: the number
// of a key is its position.
template <typename H, int D, int R> struct PageKeys {
    const u64 *pages;
    u64 at, to_values;
    int past, begin = 0;

    __device__ __forceinline__ int key_of(int row) const { return row + past; }

    __device__ __forceinline__ void load(int keys, int values, int from, int end, int dim) const {
        const H *page = (const H *)__ldg(pages + from / STEP) + at;
        copy_rows<2 * R, D, STEP>(keys, page, dim, 0, end - from, dim);
        copy_rows<2 * R, D, STEP>(values, page + to_values, dim, 0, end - from, dim);
    }
};

// A row's result depends on its own keys alone, however rows are dealt to tiles. `log_sums` may be
// null.
template <typename H, int D, int R, int S, typename Keys>
__device__ void forward(H *out, float *log_sums, const H *qkv, const uint4 *tiles, int rows, int heads, int dim,
                        const Keys &keys) {
    TILE()
    int end = keys.key_of(last);
    auto load_step = [&](int step) {
        int from = keys.begin + step * STEP;
        if (from < end) keys.load(STAGE(1, step, 0), STAGE(1, step, 1), from, end, dim);
    };
    copy_rows<2 * R, D, R>(OWN(0), q, joint, first, last, dim);
    PREFETCH()
    float o[D / 8][4] = {0}, most[2], sum[2] = {0, 0};
    most[0] = most[1] = __int_as_float(0xff800000);
    float scale = factor * LOG2_E;
    for (int step = 0, key0 = keys.begin; key0 < end; step++, key0 += STEP) {
        NEXT_STEP()
        // Otherwise the span's rows see none of these keys, or are behind the end.
        if (key0 < keys.key_of(span) + SPAN && span < last) {
            float s[4][4] = {0}, next[2] = {most[0], most[1]}, keep[2];
            pin(s);
            begin_products();
            products<H, D, R>(s, OWN(0), span - first, STAGE(1, step, 0));
            end_products();
            pin(s);
            bool edge = key0 + STEP > keys.key_of(own);
#pragma unroll
            for (int i = 0; i < 16; i++) {
                float &x = s[i / 4][i % 4];
                int key = key0 + i / 4 * 8 + 2 * t + i % 2, h = i / 2 % 2;
                if (edge && key > keys.key_of(own) + g + 8 * h) x = __int_as_float(0xff800000);
                next[h] = fmaxf(next[h], x);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                next[h] = fmaxf(next[h], __shfl_xor_sync(0xffffffffu, next[h], 1));
                next[h] = fmaxf(next[h], __shfl_xor_sync(0xffffffffu, next[h], 2));
                keep[h] = two_to((most[h] - next[h]) * scale);
                sum[h] *= keep[h];
            }
            if (__any_sync(0xffffffffu, next[0] > most[0] || next[1] > most[1])) {
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    o[n][0] *= keep[0], o[n][1] *= keep[0];
                    o[n][2] *= keep[1], o[n][3] *= keep[1];
                }
            }
            most[0] = next[0], most[1] = next[1];
            next[0] *= scale, next[1] *= scale;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                float &x = s[i / 4][i % 4];
                x = two_to(x * scale - next[i / 2 % 2]);
                sum[i / 2 % 2] += x;
            }
            u32 p[2][4];
            as_left<H>(p, s);
            pin(o);
            begin_products();
            add_rows<H, D>(o, p, STAGE(1, step, 1));
            end_products();
            pin(o);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
        int row = own + g + 8 * h;
        if (log_sums && t == 0 && row < last)
            log_sums[(u64)head * rows + row] = most[h] * factor + log_two(sum[h]) * (1 / LOG2_E);
    }
    __syncthreads();
    store_sums<H, D, R>(OWN(0), o, 1.0f / sum[0], 1.0f / sum[1]);
    write_rows<H, D, R>(out + head * dim, width, OWN(0), own, last, dim, {nullptr, nullptr, 0, 0});
}

// The sum of output times its gradient for each of a warp's rows, for this kernel and the next one.
// A lane has every 32nd piece of the warp's rows.
template <typename H, int D, int R>
__device__ __forceinline__ void sum_deltas(float *deltas, float *warp_deltas, const Pack<H, 8> (&out)[D / 16], int d_rows,
                                           int own, int last) {
    constexpr int PIECES = D / 8;
    const unsigned char *at = tile_memory + d_rows + threadIdx.x % (2 * R) / 32 * 16 * 128;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        int row = (i * 32 + threadIdx.x % 32) / PIECES, piece = threadIdx.x % PIECES;
        float sum = 0, d[8];
        load<8>(reinterpret_cast<const H *>(at + swizzle<R>(row, piece)), d);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += widen(out[i].at[j]) * d[j];
#pragma unroll
        for (int step = PIECES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (piece == 0) {
            warp_deltas[row] = sum;
            if (own + row < last) deltas[own + row] = sum;
        }
    }
    __syncwarp();
}

// The gradient of queries.
template <typename H, int D, int R, int S>
__device__ void queries(H *d_qkv, float *deltas, const H *qkv, const H *out, const H *d_out, const float *log_sums,
                        const uint4 *tiles, const float *cos, const float *sin, int rows, int heads, int dim, int half) {
    TILE()
    auto load_step = [&](int step) {
        int from = start + step * STEP;
        if (from < last) {
            copy_rows<2 * R, D, STEP>(STAGE(2, step, 0), k, joint, from, last, dim);
            copy_rows<2 * R, D, STEP>(STAGE(2, step, 1), v, joint, from, last, dim);
        }
    };
    copy_rows<2 * R, D, R>(OWN(0), q, joint, first, last, dim);
    copy_rows<2 * R, D, R>(OWN(1), d_out + head * dim, width, first, last, dim);
    PREFETCH()
    Pack<H, 8> outs[D / 16];
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        int row = own + (i * 32 + lane) / (D / 8), piece = lane % (D / 8);
        uint4 read = make_uint4(0, 0, 0, 0);
        if (row < last && piece * 8 < dim)
            read = *reinterpret_cast<const uint4 *>(out + row * width + head * dim + piece * 8);
        outs[i] = *reinterpret_cast<Pack<H, 8> *>(&read);
    }
    float scale = factor * LOG2_E, lse[2], delta[2], d_query[D / 8][4] = {0};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = own + g + 8 * h;
        lse[h] = row < last ? log_sums[(u64)head * rows + row] * LOG2_E : 0.0f;
    }
    float *warp_deltas = reinterpret_cast<float *>(tile_memory + BEHIND(2)) + (own - first);
    wait_for_copies<S - 2>();
    sum_deltas<H, D, R>(deltas + (u64)head * rows, warp_deltas, outs, OWN(1), own, last);
    delta[0] = warp_deltas[g], delta[1] = warp_deltas[g + 8];
    for (int step = 0, key0 = start; key0 < last; step++, key0 += STEP) {
        NEXT_STEP()
        if (key0 < span + SPAN && span < last) {
            float s[4][4] = {0}, dp[4][4] = {0};
            pin(s), pin(dp);
            begin_products();
            products<H, D, R>(s, OWN(0), span - first, STAGE(2, step, 0));
            products<H, D, R>(dp, OWN(1), span - first, STAGE(2, step, 1));
            end_products();
            pin(s), pin(dp);
            bool edge = key0 + STEP > own;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                int key = key0 + i / 4 * 8 + 2 * t + i % 2, h = i / 2 % 2;
                float p = two_to(s[i / 4][i % 4] * scale - lse[h]);
                if (edge && key > own + g + 8 * h) p = 0;
                s[i / 4][i % 4] = p * (dp[i / 4][i % 4] - delta[h]);
            }
            u32 ds[2][4];
            as_left<H>(ds, s);
            pin(d_query);
            begin_products();
            add_rows<H, D>(d_query, ds, STAGE(2, step, 0));
            end_products();
            pin(d_query);
        }
    }
    __syncthreads();
    store_sums<H, D, R>(OWN(0), d_query, factor, factor);
    write_rows<H, D, R>(d_qkv + 3 * head * dim, joint, OWN(0), own, last, dim, {cos, sin, half, start});
}

// The gradients of keys, by one half of the block, and of values, by the other. Rows of scores are
// keys here.
template <typename H, int D, int R, int S>
__device__ void keys_and_values(H *d_qkv, const float *deltas, const H *qkv, const H *d_out, const float *log_sums,
                                const uint4 *tiles, const float *cos, const float *sin, int rows, int heads, int dim,
                                int half) {
    TILE()
    int end = tile.w;
    bool of_keys = threadIdx.x < 2 * R;
    const float *lse = reinterpret_cast<const float *>(tile_memory + BEHIND(2));
    auto load_step = [&](int step) {
        int from = first + step * STEP;
        if (from < end) {
            copy_rows<4 * R, D, STEP>(STAGE(2, step, 0), q, joint, from, end, dim);
            copy_rows<4 * R, D, STEP>(STAGE(2, step, 1), d_out + head * dim, width, from, end, dim);
            // One warp loads the log sums, the next one the deltas.
            if (threadIdx.x < 2 * STEP) {
                u64 query = (u64)head * rows + from + lane;
                const float *of = threadIdx.x < STEP ? log_sums : deltas;
                copy4(shared(BEHIND(2) + (step % S * 2 * STEP + threadIdx.x) * 4), of + query, from + lane < end);
            }
        }
    };
    copy_rows<4 * R, D, R>(OWN(0), k, joint, first, last, dim);
    copy_rows<4 * R, D, R>(OWN(1), v, joint, first, last, dim);
    PREFETCH()
    float scale = factor * LOG2_E, sum[D / 8][4] = {0};
    for (int step = 0, from = first; from < end; step++, from += STEP) {
        NEXT_STEP()
        if (from + STEP > span && span < last) {
            float s[4][4] = {0}, dp[4][4] = {0};
            pin(s), pin(dp);
            // Written twice, because no branch may separate the products.
            if (of_keys) {
                begin_products();
                products<H, D, R>(s, OWN(0), span - first, STAGE(2, step, 0));
                products<H, D, R>(dp, OWN(1), span - first, STAGE(2, step, 1));
                end_products();
            } else {
                begin_products();
                products<H, D, R>(s, OWN(0), span - first, STAGE(2, step, 0));
                end_products();
            }
            pin(s), pin(dp);
            bool edge = from < own + 15;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                // Behind the end all values are zero and add nothing.
                int query = i / 4 * 8 + 2 * t + i % 2, at = step % S * 2 * STEP + query;
                float p = two_to(s[i / 4][i % 4] * scale - lse[at] * LOG2_E);
                if (edge && from + query < own + g + 8 * (i / 2 % 2)) p = 0;
                s[i / 4][i % 4] = of_keys ? p * (dp[i / 4][i % 4] - lse[at + STEP]) : p;
            }
            u32 a[2][4];
            as_left<H>(a, s);
            pin(sum);
            begin_products();
            add_rows<H, D>(sum, a, STAGE(2, step, of_keys ? 0 : 1));
            end_products();
            pin(sum);
        }
    }
    float by = of_keys ? factor : 1.0f;
    __syncthreads();
    store_sums<H, D, R>(OWN(of_keys ? 0 : 1), sum, by, by);
    H *to = d_qkv + (3 * head + (of_keys ? 1 : 2)) * dim;
    write_rows<H, D, R>(to, joint, OWN(of_keys ? 0 : 1), own, last, dim, {cos, sin, of_keys ? half : 0, start});
}

// Rows of a tile of queries and of keys, and stages of the copy pipeline. shared_memory.rs has the
// same numbers.
#define QUERIES 128
#define KEYS 64
#define STAGES 4
// The gradient of queries has two tiles of its own, so that fewer stages fit. With warpgroups it
// needs few enough registers for two blocks per multiprocessor.
#ifdef WARPGROUPS
#define BLOCKS 2
#define QUERY_STAGES 3
#else
#define BLOCKS 1
#define QUERY_STAGES 2
#endif

#define KERNELS(H, D)                                                                                                  \
    extern "C" __global__ __launch_bounds__(2 * QUERIES, 2) void tile_forward_##H##_##D(                               \
        H *out, float *log_sums, const H *qkv, const uint4 *tiles, int rows, int heads, int dim) {                     \
        const H *k = qkv + (3 * blockIdx.x + 1) * dim;                                                                 \
        JointKeys<H, D, QUERIES> keys{k, k + dim, (u64)3 * heads * dim, (int)tiles[blockIdx.y].z};                     \
        forward<H, D, QUERIES, STAGES>(out, log_sums, qkv, tiles, rows, heads, dim, keys);                             \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(2 * QUERIES, 2) void tile_pages_##H##_##D(                                 \
        H *out, const H *qkv, const uint4 *tiles, const u64 *tables, int width, int heads, int dim, int layer) {       \
        uint4 tile = tiles[blockIdx.y];                                                                                \
        u64 at = ((u64)layer * 2 * heads + blockIdx.x) * STEP * dim, to_values = (u64)heads * STEP * dim;              \
        PageKeys<H, D, QUERIES> keys{tables + (u64)tile.z * width, at, to_values, (int)tile.w};                        \
        forward<H, D, QUERIES, STAGES>(out, nullptr, qkv, tiles, 0, heads, dim, keys);                                 \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(2 * QUERIES, BLOCKS) void tile_queries_##H##_##D(                          \
        H *d_qkv, float *deltas, const H *qkv, const H *out, const H *d_out, const float *log_sums,                    \
        const uint4 *tiles, const float *cos, const float *sin, int rows, int heads, int dim, int half) {              \
        queries<H, D, QUERIES, QUERY_STAGES>(d_qkv, deltas, qkv, out, d_out, log_sums, tiles, cos, sin, rows, heads,   \
                                            dim, half);                                                                \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(4 * KEYS, 2) void tile_keys_and_values_##H##_##D(                          \
        H *d_qkv, const float *deltas, const H *qkv, const H *d_out, const float *log_sums, const uint4 *tiles,        \
        const float *cos, const float *sin, int rows, int heads, int dim, int half) {                                  \
        keys_and_values<H, D, KEYS, STAGES>(d_qkv, deltas, qkv, d_out, log_sums, tiles, cos, sin, rows, heads, dim, half);\
    }
KERNELS(bf16, 64)
KERNELS(bf16, 128)
KERNELS(f16, 64)
KERNELS(f16, 128)
