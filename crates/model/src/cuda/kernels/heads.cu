// Attention's joint product taken apart and put together, with the rotary turn; attention in plain loops, of any type and
// head size. Parts are (3, heads, rows, dim): turned queries, turned keys, values.

// Turns pair i of a head's leading dimensions by its angle, or back with sign -1.
__device__ __forceinline__ float turned(float own, float other, float cos, float sin, bool left) {
    return left ? own * cos - other * sin : own * cos + other * sin;
}

// A block has a row of the joint product. Sign -1 goes the other way, from parts to the joint product, and turns back.
template <typename T, int V>
__device__ void split(T *out, const T *x, const float *cos, const float *sin, const u32 *positions, int rows, int heads,
                      int dim, int half, float sign) {
    int row = blockIdx.x, width = 3 * heads * dim;
    cos += (u64)positions[row] * half, sin += (u64)positions[row] * half;
    for (int column = threadIdx.x * V; column < width; column += blockDim.x * V) {
        int d = column % dim, which = column / dim % 3, head = column / dim / 3;
        u64 part = (((u64)which * heads + head) * rows + row) * dim, joint = (u64)row * width + column - d;
        const T *from = x + (sign < 0 ? part : joint);
        T *to = out + (sign < 0 ? joint : part);
        float own[V];
        load<V>(from + d, own);
        if (which < 2 && d < 2 * half) {
            bool left = d < half;
            float other[V], c[V], s[V];
            load<V>(from + (left ? d + half : d - half), other);
            load<V>(cos + (left ? d : d - half), c), load<V>(sin + (left ? d : d - half), s);
#pragma unroll
            for (int j = 0; j < V; j++) own[j] = turned(own[j], other[j], c[j], sign * s[j], left);
        }
        store<V>(to + d, own);
    }
}

// A warp has a query from `begin` to `end`: online softmax over its keys. Keys and values lie by heads, `stride` values from token to token and
// `head_stride` from head to head.
template <typename T>
__device__ void attend(T *out, float *log_sums, const T *q, const T *k, const T *v, const u32 *firsts,
                       const u32 *counts, int begin, int end, int rows, int heads, int dim, u64 head_stride) {
    int row = begin + blockIdx.x * 4 + threadIdx.x / 32, head = blockIdx.y, lane = threadIdx.x % 32;
    if (row >= end) return;
    const T *query = q + ((u64)head * rows + row) * dim;
    k += head * head_stride, v += head * head_stride;
    float scale = rsqrtf((float)dim), most = __int_as_float(0xff800000), sum = 0, sums[8] = {0};
    int first = firsts[row], count = counts[row];
    for (int key = first; key < first + count; key++) {
        float score = 0;
        for (int d = lane; d < dim; d += 32) score += widen(query[d]) * widen(k[(u64)key * dim + d]);
        score = warp_sum(score) * scale;
        float next = fmaxf(most, score), keep = expf(most - next), p = expf(score - next);
        most = next;
        sum = sum * keep + p;
        for (int d = lane, j = 0; d < dim; d += 32, j++) sums[j] = sums[j] * keep + p * widen(v[(u64)key * dim + d]);
    }
    for (int d = lane, j = 0; d < dim; d += 32, j++)
        out[((u64)row * heads + head) * dim + d] = narrow<T>(sums[j] / sum);
    if (lane == 0) log_sums[(u64)head * rows + row] = most + logf(sum);
}

// A warp has a row: as a query it sums over its keys, then as a key over its queries.
template <typename T>
__device__ void attend_backward(T *d_parts, const T *parts, const T *out, const T *d_out, const float *log_sums,
                                const u32 *firsts, const u32 *counts, const u32 *ends, int rows, int heads, int dim) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, head = blockIdx.y, lane = threadIdx.x % 32;
    if (row >= rows) return;
    u64 third = (u64)heads * rows * dim, base = (u64)head * rows * dim;
    const T *q = parts + base, *k = q + third, *v = k + third;
    float scale = rsqrtf((float)dim), dq[8] = {0}, dk[8] = {0}, dv[8] = {0};
    const float *lse = log_sums + (u64)head * rows;
    // What pair (query, key) has: its weight and its slope.
    auto pair = [&](int query, int key, float &p, float &ds) {
        const T *o = out + ((u64)query * heads + head) * dim, *go = d_out + ((u64)query * heads + head) * dim;
        float score = 0, dp = 0;
        for (int d = lane; d < dim; d += 32) {
            score += widen(q[(u64)query * dim + d]) * widen(k[(u64)key * dim + d]);
            dp += widen(go[d]) * (widen(v[(u64)key * dim + d]) - widen(o[d]));
        }
        p = expf(warp_sum(score) * scale - lse[query]);
        ds = p * warp_sum(dp) * scale;
    };
    float p, ds;
    for (int key = firsts[row]; key < firsts[row] + counts[row]; key++) {
        pair(row, key, p, ds);
        for (int d = lane, j = 0; d < dim; d += 32, j++) dq[j] += ds * widen(k[(u64)key * dim + d]);
    }
    for (int query = row; query < ends[row]; query++) {
        pair(query, row, p, ds);
        const T *go = d_out + ((u64)query * heads + head) * dim;
        for (int d = lane, j = 0; d < dim; d += 32, j++) {
            dk[j] += ds * widen(q[(u64)query * dim + d]);
            dv[j] += p * widen(go[d]);
        }
    }
    T *to = d_parts + base + (u64)row * dim;
    for (int d = lane, j = 0; d < dim; d += 32, j++) {
        to[d] = narrow<T>(dq[j]);
        to[third + d] = narrow<T>(dk[j]);
        to[2 * third + d] = narrow<T>(dv[j]);
    }
}

// Copies a span's keys or values, (heads, rows, dim), behind the tokens of a cache, (heads, capacity, dim).
template <typename T>
__device__ void append(T *cache, const T *x, int rows, int start, int len, int past, int capacity, int dim) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, head = blockIdx.y;
    if (i < len * dim) cache[((u64)head * capacity + past) * dim + i] = x[((u64)head * rows + start) * dim + i];
}

#define SPLITS(T, t, V)                                                                                                \
    extern "C" __global__ void split_##t##_##V(T *out, const T *x, const float *cos, const float *sin,                 \
                                               const u32 *positions, int rows, int heads, int dim, int half,           \
                                               float sign) {                                                           \
        split<T, V>(out, x, cos, sin, positions, rows, heads, dim, half, sign);                                        \
    }
FOR_ALL(SPLITS)

#define KERNELS(T, t)                                                                                                  \
    extern "C" __global__ void attend_##t(T *out, float *log_sums, const T *q, const T *k, const T *v,                 \
                                          const u32 *firsts, const u32 *counts, int begin, int end, int rows,          \
                                          int heads, int dim, u64 head_stride) {                                       \
        attend<T>(out, log_sums, q, k, v, firsts, counts, begin, end, rows, heads, dim, head_stride);                  \
    }                                                                                                                  \
    extern "C" __global__ void attend_backward_##t(T *d_parts, const T *parts, const T *out, const T *d_out,           \
                                                   const float *log_sums, const u32 *firsts, const u32 *counts,        \
                                                   const u32 *ends, int rows, int heads, int dim) {                    \
        attend_backward<T>(d_parts, parts, out, d_out, log_sums, firsts, counts, ends, rows, heads, dim);              \
    }                                                                                                                  \
    extern "C" __global__ void append_##t(T *cache, const T *x, int rows, int start, int len, int past, int capacity,  \
                                          int dim) {                                                                   \
        append<T>(cache, x, rows, start, len, past, capacity, dim);                                                    \
    }
FOR_TYPES(KERNELS)
