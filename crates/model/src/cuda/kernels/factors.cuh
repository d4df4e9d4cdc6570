// The LoRA of a row in decoding.

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
