// The LoRA of a row in decoding: each row has its own adapter, of its own rank. A row's sums depend
// only on the row and its adapter.

// A product's factors: A (rank, depth) and B (columns, rank). The rank is 0 if the adapter has
// none.
struct Factor {
    u64 a, b;
    float scale;
    u32 rank;
};

#define LARGEST_RANK 256

// Returns a row's factors, or null if it has none. `adapters[row]` is the address of the adapter's
// table of factors; null is the base alone.
__device__ __forceinline__ const Factor *factor_of(const u64 *adapters, int row, int index) {
    const Factor *table = (const Factor *)adapters[row];
    return table && table[index].rank ? table + index : nullptr;
}

template <typename T> __device__ __forceinline__ bool aligned(const T *from, int count) {
    return count % 8 == 0 && (u64)from % (8 * sizeof(T)) == 0;
}

// Returns scale * B shrunk of one column; `shrunk` has the row's rank values.
template <typename T> __device__ __forceinline__ float lora_b(const Factor &factor, int column, const float *shrunk) {
    int rank = factor.rank;
    const T *b = (const T *)factor.b + (u64)column * rank;
    float sum = 0;
    if (aligned((const T *)factor.b, rank)) {
        for (int r = 0; r < rank; r += 8) {
            float values[8];
            load<8>(b + r, values);
#pragma unroll
            for (int j = 0; j < 8; j++) sum += values[j] * shrunk[r + j];
        }
    } else {
        for (int r = 0; r < rank; r++) sum += widen(b[r]) * shrunk[r];
    }
    return factor.scale * sum;
}

// Packs of eight values of A that a lane loads before the kernel before has ended.
#define HELD 12

// One element of shrunk = A x, by a warp. `x` and `shrunk` begin with the pass's first row.
template <typename T>
__device__ __forceinline__ void lora_a(float *shrunk, const T *x, const u64 *adapters, int index, int depth, int row,
                                       u32 rank) {
    int lane = threadIdx.x % 32;
    const Factor *factor = factor_of(adapters, row, index);
    const T *a = factor ? (const T *)factor->a + (u64)rank * depth : nullptr;
    x += (u64)row * depth;
    bool wide = aligned(x, depth) && aligned(a, depth);
    Pack<T, 8> held[HELD];
    if (factor && rank < factor->rank && wide) {
#pragma unroll
        for (int n = 0; n < HELD; n++)
            if (n * 256 + lane * 8 < depth) held[n] = *reinterpret_cast<const Pack<T, 8> *>(a + n * 256 + lane * 8);
    }
    wait_for_results();
    if (!factor || rank >= factor->rank) return;
    float sum = 0;
    if (wide) {
        auto add = [&](int k, const Pack<T, 8> &pack) {
            float values[8];
            load<8>(x + k, values);
#pragma unroll
            for (int j = 0; j < 8; j++) sum += values[j] * widen(pack.at[j]);
        };
#pragma unroll
        for (int n = 0; n < HELD; n++)
            if (n * 256 + lane * 8 < depth) add(n * 256 + lane * 8, held[n]);
        for (int k = HELD * 256 + lane * 8; k < depth; k += 256) add(k, *reinterpret_cast<const Pack<T, 8> *>(a + k));
    } else {
        for (int k = lane; k < depth; k += 32) sum += widen(x[k]) * widen(a[k]);
    }
    sum = warp_sum(sum);
    if (lane == 0) shrunk[(u64)row * LARGEST_RANK + rank] = sum;
}
