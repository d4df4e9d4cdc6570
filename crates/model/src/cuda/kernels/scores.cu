// What is kept of rows of logits to tell log-probabilities, so that the host need not read them.

#define THREADS 512

// One block per row. Writes the log of the sum of exponentials, summed in f64 in a fixed order, and
// the logit of the row's token.
template <typename T, int V> __device__ void scores(double *out, const T *logits, const u32 *tokens, int columns) {
    logits += (u64)blockIdx.x * columns;
    float most = __int_as_float(0xff800000), v[V];
    each<V, 0, THREADS>(columns, [&](int, int i) {
        load<V>(logits + i, v);
#pragma unroll
        for (int j = 0; j < V; j++) most = fmaxf(most, v[j]);
    });
    most = block_max(most);
    double sum = 0;
    each<V, 0, THREADS>(columns, [&](int, int i) {
        load<V>(logits + i, v);
#pragma unroll
        for (int j = 0; j < V; j++) sum += exp((double)v[j] - most);
    });
    // `fmaxf` ignores NaN; the sum propagates it.
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    out[2 * blockIdx.x] = most + log(sum);
    out[2 * blockIdx.x + 1] = widen(logits[tokens[blockIdx.x]]);
}

#define KERNELS(T, t, V)                                                                                               \
    extern "C" __global__ __launch_bounds__(THREADS) void scores_##t##_##V(                                            \
        double *out, const T *logits, const u32 *tokens, int columns) {                                                \
        scores<T, V>(out, logits, tokens, columns);                                                                    \
    }
FOR_ALL(KERNELS)
