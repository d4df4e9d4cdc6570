// The activations and their derivatives.

// Activations by id: Gelu, GeluTanh, Relu, Silu.
template <int KIND> __device__ __forceinline__ void activation(float x, float &y, float &slope) {
    if (KIND == 0) {
        // The lower tail of the normal distribution at -|x| is bell t sum(t), to 1.5e-7
        // (Abramowitz and Stegun 7.1.26). The slope needs the same exponential.
        float away = fabsf(x), t = reciprocal(1.0f + 0.23164189f * away), bell = two_to(-0.72134752f * x * x);
        float sum = 0.127414796f + t * (-0.142248368f + t * (0.710706870f + t * (-0.726576013f + t * 0.530702714f)));
        float tail = t * sum;
        y = fmaxf(x, 0.0f) - away * (tail * bell);
        float lower = bell * (tail - 0.39894228f * away);
        slope = x < 0.0f ? lower : 1.0f - lower;
    } else if (KIND == 1) {
        float inner = 0.79788456f * (x + 0.044715f * x * x * x), t = tanhf(inner);
        y = 0.5f * x * (1.0f + t);
        slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.79788456f * (1.0f + 3.0f * 0.044715f * x * x);
    } else if (KIND == 2) {
        y = fmaxf(x, 0.0f);
        slope = x > 0.0f ? 1.0f : 0.0f;
    } else {
        float s = 1.0f / (1.0f + expf(-x));
        y = x * s;
        slope = s * (1.0f + x * (1.0f - s));
    }
}

template <int KIND, int V> __device__ __forceinline__ void activations(const float (&x)[V], float (&y)[V], float (&slope)[V]) {
#pragma unroll
    for (int j = 0; j < V; j++) activation<KIND>(x[j], y[j], slope[j]);
}

template <int V>
__device__ __forceinline__ void activations(int kind, const float (&x)[V], float (&y)[V], float (&slope)[V]) {
    if (kind == 0) activations<0, V>(x, y, slope);
    if (kind == 1) activations<1, V>(x, y, slope);
    if (kind == 2) activations<2, V>(x, y, slope);
    if (kind == 3) activations<3, V>(x, y, slope);
}
