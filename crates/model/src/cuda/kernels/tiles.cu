// Attention of 16-bit floats by tiles, on the matrix units, over the joint product (rows, heads, 3, dim) with its queries and
// keys turned. A block has 64 rows of a sequence and each of its four warps 16 of these, whose sums stay in registers; the rows
// that they meet come by 32, the next 32 while the last are at work. Heads have up to D values, a multiple of 8. A tile is
// (first row, end, start and end of its sequence). No sum depends on timing: queries' gradients are summed over keys by one
// block, and keys' over queries by another, which makes the scores again.

#define THREADS 128
#define TILE 64
#define STEP 32
#define LOG2_E 1.44269504f

__device__ __forceinline__ float two_to(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log_two(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Shared memory holds rows of D values. The 16-byte pieces of a row change places by the row's number, so that a column of
// pieces lies in different banks.
extern __shared__ __align__(1024) unsigned char room[];

template <int D> __device__ __forceinline__ int place(int row, int piece) { return row * 2 * D + (piece ^ (row % 8)) * 16; }

__device__ __forceinline__ u32 shared(int at) { return (u32)__cvta_generic_to_shared(room) + at; }

// Copies that run on; where nothing is to be copied, zeros.
__device__ __forceinline__ void copy16(u32 to, const void *from, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy4(u32 to, const void *from, bool real) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(real ? 4 : 0) : "memory");
}

// Waits for all copies of all threads.
__device__ __forceinline__ void arrive() {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
}

// R rows of a matrix from `first` on, up to `end`.
template <int D, int R, typename H>
__device__ __forceinline__ void fetch(int to, const H *from, u64 stride, int first, int end, int dim) {
    constexpr int PIECES = D / 8, PASS = THREADS / PIECES;
    int piece = threadIdx.x % PIECES, row = threadIdx.x / PIECES;
    from += (u64)(first + row) * stride + piece * 8;
    u32 at = shared(to + place<D>(row, piece));
#pragma unroll
    for (int r = 0; r < R; r += PASS, from += PASS * stride)
        copy16(at + r * 2 * D, from, first + row + r < end && piece * 8 < dim);
}

__device__ __forceinline__ void read4(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

__device__ __forceinline__ void read4_turned(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

// Where a lane reads 16 x 16 values of a tile at its first row and column: as a left factor, or a right one as it lies; and as
// two right factors of which each row is a column. Column 16 k is at this address with 32 k exclusively or-ed, because a tile
// begins at a multiple of 256.
template <int D> __device__ __forceinline__ u32 as_it_lies(int tile, int row) {
    int lane = threadIdx.x % 32;
    return shared(tile + row * 2 * D + place<D>(lane % 16, lane / 16));
}

template <int D> __device__ __forceinline__ u32 rows_as_columns(int tile) {
    int lane = threadIdx.x % 32;
    return shared(tile + place<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2));
}

// s = products of a warp's 16 rows with 32 rows.
template <typename H, int D> __device__ __forceinline__ void products(float (&s)[4][4], u32 left, u32 right) {
#pragma unroll
    for (int i = 0; i < 16; i++) s[i / 4][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 a[4], b[4];
        read4(a, left ^ 32 * k);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            read4(b, (right ^ 32 * k) + n * 32 * D);
            multiply<H>(s[2 * n], a, b[0], b[1]);
            multiply<H>(s[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// c += s times 32 rows, over all D columns.
template <typename H, int D> __device__ __forceinline__ void add_rows(float (&c)[D / 8][4], const float (&s)[4][4], u32 right) {
    u32 a[2][4], b[4];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        a[k][0] = pack2<H>(s[2 * k][0], s[2 * k][1]), a[k][1] = pack2<H>(s[2 * k][2], s[2 * k][3]);
        a[k][2] = pack2<H>(s[2 * k + 1][0], s[2 * k + 1][1]), a[k][3] = pack2<H>(s[2 * k + 1][2], s[2 * k + 1][3]);
    }
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            read4_turned(b, (right ^ 32 * n) + k * 32 * D);
            multiply<H>(c[2 * n], a[k], b[0], b[1]);
            multiply<H>(c[2 * n + 1], a[k], b[2], b[3]);
        }
    }
}

// Puts a warp's 16 rows of sums, each times a factor, into its rows of a tile, which no other warp reads.
template <typename H, int D>
__device__ __forceinline__ void put(int tile, const float (&c)[D / 8][4], float upper, float lower) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    unsigned char *at = room + tile + threadIdx.x / 32 * 32 * D;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        u32 *pair = reinterpret_cast<u32 *>(at + place<D>(g, n) + 4 * t);
        pair[0] = pack2<H>(c[n][0] * upper, c[n][1] * upper);
        pair[4 * D] = pack2<H>(c[n][2] * lower, c[n][3] * lower);
    }
    __syncwarp();
}

// The angles of a sequence that begins at row `start`.
struct Turn {
    const float *cos, *sin;
    int half, start;
};

// Writes a warp's rows of a tile, from row `own` up to `last`; if there are angles, turned back.
template <typename H, int D>
__device__ __forceinline__ void give(H *to, u64 stride, int tile, int own, int last, int dim, const Turn *turn) {
    const unsigned char *at = room + tile + threadIdx.x / 32 * 32 * D;
    for (int i = threadIdx.x % 32; i < 2 * D; i += 32) {
        int row = i / (D / 8), piece = i % (D / 8), d = piece * 8;
        if (own + row >= last || d >= dim) continue;
        float x[8];
        load<8>(reinterpret_cast<const H *>(at + place<D>(row, piece)), x);
        if (turn && d < 2 * turn->half) {
            bool left = d < turn->half;
            int pair = left ? d : d - turn->half;
            u64 angle = (u64)(own + row - turn->start) * turn->half + pair;
            float other[8], cos[8], sin[8];
            load<8>(reinterpret_cast<const H *>(at + place<D>(row, (left ? d + turn->half : pair) / 8)), other);
            load<8>(turn->cos + angle, cos), load<8>(turn->sin + angle, sin);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] = x[j] * cos[j] + (left ? other[j] : -other[j]) * sin[j];
        }
        store<8>(to + (own + row) * stride + d, x);
    }
}

// A block's tile, and a lane's place in it: rows own + g and own + g + 8, pairs of columns from 2 t on.
#define PLACE()                                                                                                        \
    uint4 tile = tiles[blockIdx.y];                                                                                    \
    int first = tile.x, last = tile.y, start = tile.z, head = blockIdx.x;                                              \
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, own = first + threadIdx.x / 32 * 16;                      \
    u64 width = (u64)heads * dim, joint = 3 * width;                                                                   \
    const H *q = qkv + 3 * head * dim, *k = q + dim, *v = k + dim;                                                     \
    const float factor = rsqrtf((float)dim);

// Where tiles lie: of a block's own rows one or two, then twice what comes by 32 rows.
#define OWN(i) ((i) * 2 * TILE * D)
#define COMING(owned, turn, i) (OWN(owned) + (2 * ((turn) % 2) + (i)) * 2 * STEP * D)

template <typename H, int D>
__device__ void forward(H *out, float *log_sums, const H *qkv, const uint4 *tiles, int rows, int heads, int dim) {
    PLACE()
    auto bring = [&](int turn) {
        int from = start + turn * STEP;
        if (from < last) {
            fetch<D, STEP>(COMING(1, turn, 0), k, joint, from, last, dim);
            fetch<D, STEP>(COMING(1, turn, 1), v, joint, from, last, dim);
        }
    };
    fetch<D, TILE>(OWN(0), q, joint, first, last, dim);
    bring(0);
    arrive();
    float o[D / 8][4] = {0}, most[2], sum[2] = {0, 0};
    most[0] = most[1] = __int_as_float(0xff800000);
    float scale = factor * LOG2_E;
    for (int turn = 0, key0 = start; key0 < last; turn++, key0 += STEP) {
        bring(turn + 1);
        // Else the warp's rows see none of these keys, or do not exist.
        if (key0 <= own + 15 && own < last) {
            float s[4][4], next[2] = {most[0], most[1]}, keep[2];
            products<H, D>(s, as_it_lies<D>(OWN(0), own - first), rows_as_columns<D>(COMING(1, turn, 0)));
            bool edge = key0 + STEP > own;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                float &x = s[i / 4][i % 4];
                int key = key0 + i / 4 * 8 + 2 * t + i % 2, h = i / 2 % 2;
                if (edge && key > own + g + 8 * h) x = __int_as_float(0xff800000);
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
            add_rows<H, D>(o, s, as_it_lies<D>(COMING(1, turn, 1), 0));
        }
        arrive();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
        int row = own + g + 8 * h;
        if (t == 0 && row < last) log_sums[(u64)head * rows + row] = most[h] * factor + log_two(sum[h]) * (1 / LOG2_E);
    }
    put<H, D>(OWN(0), o, 1.0f / sum[0], 1.0f / sum[1]);
    give<H, D>(out + head * dim, width, OWN(0), own, last, dim, nullptr);
}

// Each of a warp's rows' sum of output times its gradient, for this kernel and the one after it.
template <typename H, int D>
__device__ __forceinline__ void sum_deltas(float *deltas, float *kept, const H *out, u64 width, int d_rows, int own, int last, int dim) {
    constexpr int PIECES = D / 8;
    const unsigned char *at = room + d_rows + threadIdx.x / 32 * 32 * D;
    for (int i = threadIdx.x % 32; i < 2 * D; i += 32) {
        int row = i / PIECES, piece = i % PIECES;
        float sum = 0, x[8], d[8];
        if (own + row < last && piece * 8 < dim) {
            load<8>(out + (own + row) * width + piece * 8, x);
            load<8>(reinterpret_cast<const H *>(at + place<D>(row, piece)), d);
#pragma unroll
            for (int j = 0; j < 8; j++) sum += x[j] * d[j];
        }
#pragma unroll
        for (int step = PIECES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (piece == 0) {
            kept[row] = sum;
            if (own + row < last) deltas[own + row] = sum;
        }
    }
    __syncwarp();
}

// The gradient of queries.
template <typename H, int D>
__device__ void queries(H *d_qkv, float *deltas, const H *qkv, const H *out, const H *d_out, const float *log_sums,
                        const uint4 *tiles, const float *cos, const float *sin, int rows, int heads, int dim, int half) {
    PLACE()
    auto bring = [&](int turn) {
        int from = start + turn * STEP;
        if (from < last) {
            fetch<D, STEP>(COMING(2, turn, 0), k, joint, from, last, dim);
            fetch<D, STEP>(COMING(2, turn, 1), v, joint, from, last, dim);
        }
    };
    fetch<D, TILE>(OWN(0), q, joint, first, last, dim);
    fetch<D, TILE>(OWN(1), d_out + head * dim, width, first, last, dim);
    bring(0);
    arrive();
    float *kept = reinterpret_cast<float *>(room + COMING(2, 1, 2)) + (own - first);
    sum_deltas<H, D>(deltas + (u64)head * rows, kept, out + head * dim, width, OWN(1), own, last, dim);
    float scale = factor * LOG2_E, lse[2], delta[2], d_query[D / 8][4] = {0};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = own + g + 8 * h;
        lse[h] = row < last ? log_sums[(u64)head * rows + row] * LOG2_E : 0.0f;
        delta[h] = kept[g + 8 * h];
    }
    for (int turn = 0, key0 = start; key0 < last; turn++, key0 += STEP) {
        bring(turn + 1);
        if (key0 <= own + 15 && own < last) {
            float s[4][4], dp[4][4];
            products<H, D>(s, as_it_lies<D>(OWN(0), own - first), rows_as_columns<D>(COMING(2, turn, 0)));
            products<H, D>(dp, as_it_lies<D>(OWN(1), own - first), rows_as_columns<D>(COMING(2, turn, 1)));
            bool edge = key0 + STEP > own;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                int key = key0 + i / 4 * 8 + 2 * t + i % 2, h = i / 2 % 2;
                float p = two_to(s[i / 4][i % 4] * scale - lse[h]);
                if (edge && key > own + g + 8 * h) p = 0;
                s[i / 4][i % 4] = p * (dp[i / 4][i % 4] - delta[h]);
            }
            add_rows<H, D>(d_query, s, as_it_lies<D>(COMING(2, turn, 0), 0));
        }
        arrive();
    }
    Turn back = {cos, sin, half, start};
    put<H, D>(OWN(0), d_query, factor, factor);
    give<H, D>(d_qkv + 3 * head * dim, joint, OWN(0), own, last, dim, &back);
}

// The gradients of keys and values: here the scores' rows are keys.
template <typename H, int D>
__device__ void keys_and_values(H *d_qkv, const float *deltas, const H *qkv, const H *d_out, const float *log_sums,
                                const uint4 *tiles, const float *cos, const float *sin, int rows, int heads, int dim,
                                int half) {
    PLACE()
    int end = tile.w;
    const float *lse = reinterpret_cast<const float *>(room + COMING(2, 1, 2));
    auto bring = [&](int turn) {
        int from = first + turn * STEP;
        if (from < end) {
            fetch<D, STEP>(COMING(2, turn, 0), q, joint, from, end, dim);
            fetch<D, STEP>(COMING(2, turn, 1), d_out + head * dim, width, from, end, dim);
            // A warp has the log sums, the next one the deltas.
            if (threadIdx.x < 2 * STEP) {
                u64 query = (u64)head * rows + from + lane;
                const float *of = threadIdx.x < STEP ? log_sums : deltas;
                copy4(shared(COMING(2, 1, 2) + (turn % 2 * 2 * STEP + threadIdx.x) * 4), of + query, from + lane < end);
            }
        }
    };
    fetch<D, TILE>(OWN(0), k, joint, first, last, dim);
    fetch<D, TILE>(OWN(1), v, joint, first, last, dim);
    bring(0);
    arrive();
    float scale = factor * LOG2_E, d_key[D / 8][4] = {0}, d_value[D / 8][4] = {0};
    for (int turn = 0, from = first; from < end; turn++, from += STEP) {
        bring(turn + 1);
        if (from + STEP > own && own < last) {
            float s[4][4], dp[4][4];
            products<H, D>(s, as_it_lies<D>(OWN(0), own - first), rows_as_columns<D>(COMING(2, turn, 0)));
            products<H, D>(dp, as_it_lies<D>(OWN(1), own - first), rows_as_columns<D>(COMING(2, turn, 1)));
            bool edge = from < own + 15;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                // Behind the end all is zero, and so is what these sums get of it.
                int query = i / 4 * 8 + 2 * t + i % 2, at = turn % 2 * 2 * STEP + query;
                float p = two_to(s[i / 4][i % 4] * scale - lse[at] * LOG2_E);
                if (edge && from + query < own + g + 8 * (i / 2 % 2)) p = 0;
                s[i / 4][i % 4] = p;
                dp[i / 4][i % 4] = p * (dp[i / 4][i % 4] - lse[at + STEP]);
            }
            add_rows<H, D>(d_value, s, as_it_lies<D>(COMING(2, turn, 1), 0));
            add_rows<H, D>(d_key, dp, as_it_lies<D>(COMING(2, turn, 0), 0));
        }
        arrive();
    }
    Turn back = {cos, sin, half, start};
    put<H, D>(OWN(0), d_key, factor, factor);
    give<H, D>(d_qkv + (3 * head + 1) * dim, joint, OWN(0), own, last, dim, &back);
    put<H, D>(OWN(1), d_value, 1.0f, 1.0f);
    give<H, D>(d_qkv + (3 * head + 2) * dim, joint, OWN(1), own, last, dim, nullptr);
}

#define KERNELS(H, D)                                                                                                  \
    extern "C" __global__ __launch_bounds__(THREADS, 4) void tile_forward_##H##_##D(                                   \
        H *out, float *log_sums, const H *qkv, const uint4 *tiles, int rows, int heads, int dim) {                     \
        forward<H, D>(out, log_sums, qkv, tiles, rows, heads, dim);                                                    \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(THREADS, 3) void tile_queries_##H##_##D(                                   \
        H *d_qkv, float *deltas, const H *qkv, const H *out, const H *d_out, const float *log_sums,                    \
        const uint4 *tiles, const float *cos, const float *sin, int rows, int heads, int dim, int half) {              \
        queries<H, D>(d_qkv, deltas, qkv, out, d_out, log_sums, tiles, cos, sin, rows, heads, dim, half);              \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(THREADS, 2) void tile_keys_and_values_##H##_##D(                           \
        H *d_qkv, const float *deltas, const H *qkv, const H *d_out, const float *log_sums, const uint4 *tiles,        \
        const float *cos, const float *sin, int rows, int heads, int dim, int half) {                                  \
        keys_and_values<H, D>(d_qkv, deltas, qkv, d_out, log_sums, tiles, cos, sin, rows, heads, dim, half);           \
    }
KERNELS(bf16, 64)
KERNELS(bf16, 128)
KERNELS(f16, 64)
KERNELS(f16, 128)
