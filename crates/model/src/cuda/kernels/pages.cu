// Keys and values in pages of PAGE tokens, and attention over them. A page holds all layers:
// (layers, 2, heads, PAGE, dim), keys before values. Each sequence has a table of `width` page
// addresses.

#define PAGE 32
// Keys per attention block. A row with more keys has several blocks, whose results are combined in
// order.
#define SPLIT 256
// Keys that a group of lanes loads before it uses the first.
#define AHEAD 4
#define LARGEST_HEAD 256

// Returns the start of a sequence's table. Without `sequences`, each row is a sequence.
__device__ __forceinline__ const u64 *table_of(const u64 *tables, const u32 *sequences, int row, int width) {
    return tables + (u64)(sequences ? sequences[row] : row) * width;
}

// Rotates queries and keys in place, and appends keys and values to the pages. One warp per (row,
// head).
template <typename T>
__device__ void append_pages(T *qkv, const float *cos, const float *sin, const u64 *tables, const u32 *sequences,
                             const u32 *positions, int width, int rows, int heads, int dim, int half, int layer) {
    start_next(), wait_for_results();
    int i = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, row = i / heads, head = i % heads;
    // A padding row has the position -1.
    int position = row < rows ? positions[row] : -1;
    if (position < 0) return;
    T *page = (T *)table_of(tables, sequences, row, width)[position / PAGE];
    T *keys = page + (((u64)layer * 2 * heads + head) * PAGE + position % PAGE) * dim;
    T *values = keys + (u64)heads * PAGE * dim;
    T *query = qkv + (u64)i * 3 * dim, *key = query + dim, *value = key + dim;
    for (int d = lane; d < half; d += 32) {
        float c = cos[(u64)position * half + d], s = sin[(u64)position * half + d];
        float a = widen(query[d]), b = widen(query[d + half]);
        query[d] = narrow<T>(a * c - b * s), query[d + half] = narrow<T>(b * c + a * s);
        a = widen(key[d]), b = widen(key[d + half]);
        key[d] = narrow<T>(a * c - b * s), key[d + half] = narrow<T>(b * c + a * s);
        keys[d] = key[d], keys[d + half] = key[d + half];
    }
    for (int d = 2 * half + lane; d < dim; d += 32) keys[d] = key[d];
    for (int d = lane; d < dim; d += 32) values[d] = value[d];
}

// Returns a lane's j-th dimension: V = 8 takes eight consecutive ones, V = 1 every 32nd.
template <int V> __device__ __forceinline__ int dimension(int lane, int j) {
    return V == 8 ? lane * 8 + j : lane + 32 * j;
}

// Eight dimensions in the storage type, so that loads in flight take few registers.
template <typename T, int V> struct Dimensions {
    Pack<T, V> packs[8 / V];

    __device__ __forceinline__ void load(const T *from, int lane, int dim) {
#pragma unroll
        for (int j = 0; j < 8; j += V) {
            int d = dimension<V>(lane, j);
            if (d < dim) packs[j / V] = *reinterpret_cast<const Pack<T, V> *>(from + d);
        }
    }

    __device__ __forceinline__ float at(int lane, int j, int dim) const {
        return dimension<V>(lane, j) < dim ? widen(packs[j / V].at[j % V]) : 0.0f;
    }
};

// Returns the mask of the lanes that share this thread's key.
template <int L> __device__ __forceinline__ u32 group_mask() {
    return L == 32 ? 0xffffffffu : ((1u << L % 32) - 1) << threadIdx.x % 32 / L * L;
}

// The running softmax of a group of lanes, in base 2: the highest score, the sum of weights, and
// the weighted sum of values, of which a lane has eight dimensions.
struct Running {
    float most, sum, sums[8];

    __device__ __forceinline__ Running() : most(__int_as_float(0xff800000)), sum(0) {
#pragma unroll
        for (int j = 0; j < 8; j++) sums[j] = 0;
    }
};

// Loads AHEAD keys and values from `first` on, each group every GROUPS-th, below `end`. `pages`
// begins with the page of `begin`; `at` is the head's place in a page, its values lie `to_values`
// further.
template <typename T, int V, int GROUPS>
__device__ __forceinline__ void load_ahead(Dimensions<T, V> (&keys)[AHEAD], Dimensions<T, V> (&values)[AHEAD],
                                           const T *const *pages, u64 at, u64 to_values, int first, int begin, int end,
                                           int lane, int dim) {
#pragma unroll
    for (int n = 0; n < AHEAD; n++) {
        int key = first + n * GROUPS;
        if (key >= end) break;
        const T *from = pages[(key - begin) / PAGE] + at + (u64)(key % PAGE) * dim;
        keys[n].load(from, lane, dim), values[n].load(from + to_values, lane, dim);
    }
}

// Takes in AHEAD keys from `first` on, each group every GROUPS-th. Those from `end` on do not
// count.
template <typename T, int V, int L, int GROUPS>
__device__ __forceinline__ void take(Running &run, Dimensions<T, V> (&keys)[AHEAD], Dimensions<T, V> (&values)[AHEAD],
                                     const float (&query)[8], int first, int end, int lane, int dim) {
    float scores[AHEAD], highest = run.most;
#pragma unroll
    for (int n = 0; n < AHEAD; n++) {
        scores[n] = __int_as_float(0xff800000);
        if constexpr (V == 8) keep_packed(keys[n].packs[0]);
        if (first + n * GROUPS < end) {
            scores[n] = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) scores[n] += query[j] * keys[n].at(lane, j, dim);
        }
#pragma unroll
        for (int step = L / 2; step > 0; step /= 2) scores[n] += __shfl_xor_sync(group_mask<L>(), scores[n], step);
        highest = fmaxf(highest, scores[n]);
    }
    float keep = two_to(run.most - highest);
    run.most = highest, run.sum *= keep;
#pragma unroll
    for (int j = 0; j < 8; j++) run.sums[j] *= keep;
#pragma unroll
    for (int n = 0; n < AHEAD; n++) {
        if (first + n * GROUPS >= end) break;
        if constexpr (V == 8) keep_packed(values[n].packs[0]);
        float weight = two_to(scores[n] - run.most);
        run.sum += weight;
#pragma unroll
        for (int j = 0; j < 8; j++) run.sums[j] += weight * values[n].at(lane, j, dim);
    }
}

// Adds up the groups of a block, and writes the row's result, or that of its split.
template <typename T, int V, int L, int THREADS>
__device__ __forceinline__ void write(T *out, float *part, const Running &run, bool whole, int dim) {
    constexpr int GROUPS = THREADS / L, WIDTH = V == 8 ? L * 8 : 256;
    __shared__ float group_most[GROUPS], group_sum[GROUPS], group_out[GROUPS][WIDTH + 4];
    int lane = threadIdx.x % L, group = threadIdx.x / L;
    if (lane == 0) group_most[group] = run.most, group_sum[group] = run.sum;
#pragma unroll
    for (int j = 0; j < 8; j++)
        if (dimension<V>(lane, j) < WIDTH) group_out[group][dimension<V>(lane, j)] = run.sums[j];
    __syncthreads();
    float most = group_most[0], sum = 0;
    for (int g = 1; g < GROUPS; g++) most = fmaxf(most, group_most[g]);
    for (int g = 0; g < GROUPS; g++) sum += group_sum[g] * two_to(group_most[g] - most);
    for (int d = threadIdx.x; d < dim; d += THREADS) {
        float value = 0;
        for (int g = 0; g < GROUPS; g++) value += group_out[g][d] * two_to(group_most[g] - most);
        if (whole)
            out[d] = narrow<T>(value / sum);
        else
            part[2 + d] = value;
    }
    if (!whole && threadIdx.x == 0) part[0] = most, part[1] = sum;
}

// One block per (row, head, split), L lanes per key.
template <typename T, int V, int L>
__device__ void attend_pages(T *out, float *parts, const T *qkv, const u64 *tables, const u32 *sequences,
                             const u32 *positions, int width, int heads, int dim, int layer, int splits) {
    constexpr int THREADS = 128, GROUPS = THREADS / L;
    __shared__ const T *pages[SPLIT / PAGE];
    start_next(), wait_for_results();
    int row = blockIdx.y, head = blockIdx.x % heads, split = blockIdx.x / heads;
    int count = positions[row] + 1, begin = split * SPLIT, end = min(begin + SPLIT, count);
    if (begin >= count) return;
    const u64 *table = table_of(tables, sequences, row, width) + begin / PAGE;
    if (threadIdx.x < SPLIT / PAGE && begin + (int)threadIdx.x * PAGE < end)
        pages[threadIdx.x] = (const T *)table[threadIdx.x];
    __syncthreads();
    int lane = threadIdx.x % L, group = threadIdx.x / L;
    u64 at = ((u64)layer * 2 * heads + head) * PAGE * dim, to_values = (u64)heads * PAGE * dim;
    float scale = rsqrtf((float)dim) * 1.4426950408889634f, query[8];
    Dimensions<T, V> own;
    own.load(qkv + ((u64)row * heads + head) * 3 * dim, lane, dim);
#pragma unroll
    for (int j = 0; j < 8; j++) query[j] = own.at(lane, j, dim) * scale;
    Running run;
    for (int first = begin + group; first < end; first += GROUPS * AHEAD) {
        Dimensions<T, V> keys[AHEAD], values[AHEAD];
        load_ahead<T, V, GROUPS>(keys, values, pages, at, to_values, first, begin, end, lane, dim);
        take<T, V, L, GROUPS>(run, keys, values, query, first, end, lane, dim);
    }
    u64 place = (u64)row * heads + head;
    write<T, V, L, THREADS>(out + place * dim, parts + (place * splits + split) * (dim + 2), run, count <= SPLIT, dim);
}

#define ANSWER_THREADS 256

// What a row of an answer still lacks: its LoRA of the joint projection (`adapters` is null without
// any), and the rotation.
struct Raw {
    const u64 *adapters;
    const float *shrunk;
    int index;
    const float *cos, *sin;
    int half;
};

// Completes a row's joint product as `rows_lora_b` and `append_pages` do it, bit by bit. `joint`
// gets the rotated query, and with `is_own` the rotated key and the value, which also go to the
// page.
template <typename T>
__device__ __forceinline__ void complete(T *joint, const T *qkv, const Raw &raw, const Factor *factor, int row, int head,
                                         int position, int dim, bool is_own, T *keys, T *values) {
    constexpr int EACH = 3 * LARGEST_HEAD / ANSWER_THREADS;
    __shared__ float shrunk[LARGEST_RANK];
    int thread = threadIdx.x, parts = is_own ? 3 * dim : dim;
    // All loads come before the first of their values is needed. A head has at most half as many
    // pairs of rotated dimensions as there are threads.
    T own[EACH];
#pragma unroll
    for (int n = 0; n < EACH; n++)
        if (n * ANSWER_THREADS + thread < parts) own[n] = qkv[n * ANSWER_THREADS + thread];
    int pair = thread % max(raw.half, 1);
    float c = 0, s = 0;
    if (thread < 2 * raw.half) {
        c = raw.cos[(u64)position * raw.half + pair];
        s = raw.sin[(u64)position * raw.half + pair];
    }
    if (factor)
        for (int r = thread; r < factor->rank; r += ANSWER_THREADS) shrunk[r] = raw.shrunk[(u64)row * LARGEST_RANK + r];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < EACH; n++) {
        int i = n * ANSWER_THREADS + thread;
        if (i >= parts) break;
        T x = own[n];
        if (factor) x = narrow<T>(widen(x) + lora_b<T>(*factor, head * 3 * dim + i, shrunk));
        joint[i] = x;
        if (i >= 2 * dim) values[i - 2 * dim] = x;
    }
    __syncthreads();
    if (thread < (is_own ? 2 : 1) * raw.half) {
        T *part = joint + (thread < raw.half ? 0 : dim);
        float a = widen(part[pair]), b = widen(part[pair + raw.half]);
        part[pair] = narrow<T>(a * c - b * s), part[pair + raw.half] = narrow<T>(b * c + a * s);
    }
    __syncthreads();
    if (is_own)
        for (int d = threadIdx.x; d < dim; d += ANSWER_THREADS) keys[d] = joint[dim + d];
}

// Attention of answers' next tokens, one block per (row, head, split), L lanes per key. All that
// was written before this pass is loaded before the kernel before has ended. The token's own key
// comes last.
template <typename T, int V, int L>
__device__ void attend_answers(T *out, float *parts, const T *qkv, const u64 *tables, const u32 *positions, int width,
                               int heads, int dim, int layer, int splits, const Raw &raw) {
    constexpr int GROUPS = ANSWER_THREADS / L;
    __shared__ const T *pages[SPLIT / PAGE];
    __shared__ alignas(16) T joint[3 * LARGEST_HEAD];
    start_next();
    int row = blockIdx.y, head = blockIdx.x % heads, split = blockIdx.x / heads;
    int own = positions[row], begin = split * SPLIT, end = min(begin + SPLIT, own);
    // At least the first block stays, and waits.
    if (begin > own) return;
    bool is_own = own < begin + SPLIT;
    const u64 *table = tables + (u64)row * width + begin / PAGE;
    if (threadIdx.x < SPLIT / PAGE && begin + (int)threadIdx.x * PAGE <= own)
        pages[threadIdx.x] = (const T *)table[threadIdx.x];
    const Factor *factor = raw.adapters ? factor_of(raw.adapters, row, raw.index) : nullptr;
    if (factor)
        for (int i = threadIdx.x; i < 3 * dim; i += ANSWER_THREADS)
            asm volatile("prefetch.global.L2 [%0];" ::"l"((const T *)factor->b + (u64)(head * 3 * dim + i) * factor->rank));
    __syncthreads();
    int lane = threadIdx.x % L, group = threadIdx.x / L;
    u64 at = ((u64)layer * 2 * heads + head) * PAGE * dim, to_values = (u64)heads * PAGE * dim;
    Dimensions<T, V> keys[AHEAD], values[AHEAD];
    auto load = [&](int first) {
        load_ahead<T, V, GROUPS>(keys, values, pages, at, to_values, first, begin, end, lane, dim);
    };
    load(begin + group);
    wait_for_results();
    u64 place = (u64)row * heads + head;
    T *own_key = const_cast<T *>(pages[is_own ? (own - begin) / PAGE : 0]) + at + (u64)(own % PAGE) * dim;
    complete(joint, qkv + place * 3 * dim, raw, factor, row, head, own, dim, is_own, own_key, own_key + to_values);
    float scale = rsqrtf((float)dim) * 1.4426950408889634f, query[8];
    Dimensions<T, V> held;
    held.load(joint, lane, dim);
#pragma unroll
    for (int j = 0; j < 8; j++) query[j] = held.at(lane, j, dim) * scale;
    Running run;
    for (int first = begin + group; first < end; first += GROUPS * AHEAD) {
        take<T, V, L, GROUPS>(run, keys, values, query, first, end, lane, dim);
        load(first + GROUPS * AHEAD);
    }
    if (is_own && group == 0) {
        keys[0].load(joint + dim, lane, dim), values[0].load(joint + 2 * dim, lane, dim);
        take<T, V, L, GROUPS>(run, keys, values, query, own, own + 1, lane, dim);
    }
    write<T, V, L, ANSWER_THREADS>(out + place * dim, parts + (place * splits + split) * (dim + 2), run, own < SPLIT, dim);
}

// Combines the splits of each row that has several. One block per (row, head).
template <typename T>
__device__ void combine_splits(T *out, const float *parts, const u32 *positions, int heads, int dim, int splits) {
    start_next(), wait_for_results();
    int row = blockIdx.y, head = blockIdx.x, count = positions[row] + 1;
    if (count <= SPLIT) return;
    const float *part = parts + ((u64)row * heads + head) * splits * (dim + 2);
    int real = (count + SPLIT - 1) / SPLIT;
    float most = part[0], sum = 0;
    for (int s = 1; s < real; s++) most = fmaxf(most, part[(u64)s * (dim + 2)]);
    for (int s = 0; s < real; s++) sum += part[(u64)s * (dim + 2) + 1] * two_to(part[(u64)s * (dim + 2)] - most);
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
        float value = 0;
        for (int s = 0; s < real; s++) {
            const float *from = part + (u64)s * (dim + 2);
            value += from[2 + d] * two_to(from[0] - most);
        }
        out[((u64)row * heads + head) * dim + d] = narrow<T>(value / sum);
    }
}

#define KERNELS(T, t)                                                                                                  \
    extern "C" __global__ void append_pages_##t(T *qkv, const float *cos, const float *sin, const u64 *tables,         \
                                                const u32 *sequences, const u32 *positions, int width, int rows,       \
                                                int heads, int dim, int half, int layer) {                             \
        append_pages<T>(qkv, cos, sin, tables, sequences, positions, width, rows, heads, dim, half, layer);            \
    }                                                                                                                  \
    extern "C" __global__ void combine_splits_##t(T *out, const float *parts, const u32 *positions, int heads,         \
                                                  int dim, int splits) {                                               \
        combine_splits<T>(out, parts, positions, heads, dim, splits);                                                  \
    }                                                                                                                  \
    ATTEND(T, t, 1, 32, 1) ATTEND(T, t, 8, 8, 8) ATTEND(T, t, 8, 16, 16) ATTEND(T, t, 8, 32, 32)
#define ATTEND(T, t, V, L, l)                                                                                          \
    extern "C" __global__ __launch_bounds__(128) void attend_pages_##t##_##l(                                          \
        T *out, float *parts, const T *qkv, const u64 *tables, const u32 *sequences, const u32 *positions,             \
        int width, int heads, int dim, int layer, int splits) {                                                        \
        attend_pages<T, V, L>(out, parts, qkv, tables, sequences, positions, width, heads, dim, layer, splits);        \
    }                                                                                                                  \
    extern "C" __global__ __launch_bounds__(ANSWER_THREADS, 3) void attend_answers_##t##_##l(                          \
        T *out, float *parts, const T *qkv, const u64 *tables, const u32 *positions, int width, int heads, int dim,    \
        int layer, int splits, const u64 *adapters, const float *shrunk, int index, const float *cos,                  \
        const float *sin, int half) {                                                                                  \
        Raw raw{adapters, shrunk, index, cos, sin, half};                                                              \
        attend_answers<T, V, L>(out, parts, qkv, tables, positions, width, heads, dim, layer, splits, raw);            \
    }
FOR_TYPES(KERNELS)
