// Attention over the joint product (rows, heads, 3, dim): the rotary embedding in place, attention
// in plain loops for any type and head size.

// Rotates the pairs (i, i + half) of queries and keys by their angles, or back with sign -1. A
// thread has V pairs.
template <typename T, int V>
__device__ void rotate(T *x, const float *cos, const float *sin, const u32 *positions, int heads, int dim, int half,
                     float sign, u32 count) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int pair = i % (half / V) * V, part = i / (half / V), row = part / (2 * heads), head = part % (2 * heads) / 2;
    x += ((u64)row * heads + head) * 3 * dim + part % 2 * dim + pair;
    u64 angle = (u64)positions[row] * half + pair;
    float left[V], right[V], c[V], s[V];
    load<V>(x, left), load<V>(x + half, right);
    load<V>(cos + angle, c), load<V>(sin + angle, s);
#pragma unroll
    for (int j = 0; j < V; j++) {
        float a = left[j], b = right[j];
        left[j] = a * c[j] - b * sign * s[j];
        right[j] = b * c[j] + a * sign * s[j];
    }
    store<V>(x, left), store<V>(x + half, right);
}

// A warp has one query: an online softmax over its keys.
template <typename T>
__device__ void attend(T *out, float *log_sums, const T *qkv, const u32 *firsts, const u32 *counts, int rows,
                       int heads, int dim) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, head = blockIdx.y, lane = threadIdx.x % 32;
    if (row >= rows) return;
    u64 width = 3 * (u64)heads * dim;
    const T *q = qkv + (u64)head * 3 * dim, *k = q + dim, *v = k + dim, *query = q + row * width;
    float scale = rsqrtf((float)dim), most = __int_as_float(0xff800000), sum = 0, sums[8] = {0};
    int first = firsts[row], count = counts[row];
    for (u64 key = first; key < first + count; key++) {
        float score = 0;
        for (int d = lane; d < dim; d += 32) score += widen(query[d]) * widen(k[key * width + d]);
        score = warp_sum(score) * scale;
        float next = fmaxf(most, score), keep = expf(most - next), p = expf(score - next);
        most = next;
        sum = sum * keep + p;
        for (int d = lane, j = 0; d < dim; d += 32, j++) sums[j] = sums[j] * keep + p * widen(v[key * width + d]);
    }
    for (int d = lane, j = 0; d < dim; d += 32, j++)
        out[((u64)row * heads + head) * dim + d] = narrow<T>(sums[j] / sum);
    if (lane == 0) log_sums[(u64)head * rows + row] = most + logf(sum);
}

// A warp has a row: it sums over its keys as a query, then over its queries as a key.
template <typename T>
__device__ void attend_backward(T *d_qkv, const T *qkv, const T *out, const T *d_out, const float *log_sums,
                                const u32 *firsts, const u32 *counts, const u32 *ends, int rows, int heads, int dim) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, head = blockIdx.y, lane = threadIdx.x % 32;
    if (row >= rows) return;
    u64 width = 3 * (u64)heads * dim;
    const T *q = qkv + (u64)head * 3 * dim, *k = q + dim, *v = k + dim;
    float scale = rsqrtf((float)dim), dq[8] = {0}, dk[8] = {0}, dv[8] = {0};
    const float *lse = log_sums + (u64)head * rows;
    // The weight of a pair (query, key), and the gradient of its score.
    auto pair = [&](int query, int key, float &p, float &ds) {
        const T *o = out + ((u64)query * heads + head) * dim, *go = d_out + ((u64)query * heads + head) * dim;
        float score = 0, dp = 0;
        for (int d = lane; d < dim; d += 32) {
            score += widen(q[query * width + d]) * widen(k[key * width + d]);
            dp += widen(go[d]) * (widen(v[key * width + d]) - widen(o[d]));
        }
        p = expf(warp_sum(score) * scale - lse[query]);
        ds = p * warp_sum(dp) * scale;
    };
    float p, ds;
    for (int key = firsts[row]; key < firsts[row] + counts[row]; key++) {
        pair(row, key, p, ds);
        for (int d = lane, j = 0; d < dim; d += 32, j++) dq[j] += ds * widen(k[key * width + d]);
    }
    for (int query = row; query < ends[row]; query++) {
        pair(query, row, p, ds);
        const T *go = d_out + ((u64)query * heads + head) * dim;
        for (int d = lane, j = 0; d < dim; d += 32, j++) {
            dk[j] += ds * widen(q[query * width + d]);
            dv[j] += p * widen(go[d]);
        }
    }
    T *to = d_qkv + row * width + (u64)head * 3 * dim;
    for (int d = lane, j = 0; d < dim; d += 32, j++) {
        to[d] = narrow<T>(dq[j]);
        to[dim + d] = narrow<T>(dk[j]);
        to[2 * dim + d] = narrow<T>(dv[j]);
    }
}

#define ROTATIONS(T, t, V)                                                                                             \
    extern "C" __global__ void rotate_##t##_##V(T *x, const float *cos, const float *sin, const u32 *positions,        \
                                              int heads, int dim, int half, float sign, u32 count) {                   \
        rotate<T, V>(x, cos, sin, positions, heads, dim, half, sign, count);                                           \
    }
FOR_ALL(ROTATIONS)

#define KERNELS(T, t)                                                                                                  \
    extern "C" __global__ void attend_##t(T *out, float *log_sums, const T *qkv, const u32 *firsts,                    \
                                          const u32 *counts, int rows, int heads, int dim) {                           \
        attend<T>(out, log_sums, qkv, firsts, counts, rows, heads, dim);                                               \
    }                                                                                                                  \
    extern "C" __global__ void attend_backward_##t(T *d_qkv, const T *qkv, const T *out, const T *d_out,               \
                                                   const float *log_sums, const u32 *firsts, const u32 *counts,        \
                                                   const u32 *ends, int rows, int heads, int dim) {                    \
        attend_backward<T>(d_qkv, qkv, out, d_out, log_sums, firsts, counts, ends, rows, heads, dim);                  \
    }
FOR_TYPES(KERNELS)
