// The matrix units' products of 16-bit floats, 16 x 16 by 16 x 8. Lane l has, with g = l / 4 and t
// = l % 4:
// * of the left factor four registers: row g, columns 2 t and 2 t + 1; the same of row g + 8; then
//   both again 8 columns to the right
// * of the right factor two: column g, rows 2 t and 2 t + 1; the same 8 rows below
// * of the sums: row g, columns 2 t and 2 t + 1; then row g + 8

template <typename H> __device__ u32 pack2(float low, float high);
template <> __device__ __forceinline__ u32 pack2<bf16>(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
template <> __device__ __forceinline__ u32 pack2<f16>(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// c += a b: 16 x 16 by 16 x 8.
template <typename H> __device__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
#define MULTIPLY(T)                                                                                                    \
    template <> __device__ __forceinline__ void multiply<T>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {        \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." #T "." #T ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "          \
            "{%0,%1,%2,%3};"                                                                                           \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                           \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                           \
    }
MULTIPLY(bf16)
MULTIPLY(f16)

// Transposes 8 x 8 values; a lane has row g, columns 2 t and 2 t + 1.
__device__ __forceinline__ u32 transposed(u32 pair) {
    u32 out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}
