// Tiles of rows in shared memory, and a block's products with them. A warp multiplies alone, or, on
// sm_90a, in a warpgroup of four warps, which reads a tile once for all four. Either way a warp has
// 16 rows of sums.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WARPGROUPS
// Rows that one instruction multiplies.
#define SPAN 64
#else
#define SPAN 16
#endif

#define STEP 32
#define LOG2_E 1.44269504f

__device__ __forceinline__ float log_two(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A tile of R rows consists of slabs of 64 columns, 128 bytes a row. The 16-byte pieces of a slab's
// row are permuted by the row's index (a swizzle), so that a column of pieces is in different
// banks.
extern __shared__ __align__(1024) unsigned char tile_memory[];

template <int R> __device__ __forceinline__ int swizzle(int row, int piece) {
    return (piece / 8 * R + row) * 128 + (piece % 8 ^ row % 8) * 16;
}

__device__ __forceinline__ u32 shared(int at) { return (u32)__cvta_generic_to_shared(tile_memory) + at; }

// Asynchronous copies; without `real` they write zeros.
__device__ __forceinline__ void copy16(u32 to, const void *from, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy4(u32 to, const void *from, bool real) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(real ? 4 : 0) : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for the groups of copies of all threads, except the last `LATER`.
template <int LATER> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
#ifdef WARPGROUPS
    // The warpgroup's units read memory through another proxy than the threads.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncthreads();
}

// Copies R rows of a matrix, from `first` to `end`, to a tile, with THREADS threads.
template <int THREADS, int D, int R, typename H>
__device__ __forceinline__ void copy_rows(int to, const H *from, u64 stride, int first, int end, int dim) {
    constexpr int PIECES = D / 8, PASS = THREADS / PIECES;
    int piece = threadIdx.x % PIECES, row = threadIdx.x / PIECES;
    from += (u64)(first + row) * stride + piece * 8;
    u32 at = shared(to + swizzle<R>(row, piece));
#pragma unroll
    for (int r = 0; r < R; r += PASS, from += PASS * stride)
        copy16(at + r * 128, from, first + row + r < end && piece * 8 < dim);
}

// Makes the left factors of two products from a warp's 16 x 32 sums.
template <typename H> __device__ __forceinline__ void as_left(u32 (&a)[2][4], const float (&s)[4][4]) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
        a[k][0] = pack2<H>(s[2 * k][0], s[2 * k][1]), a[k][1] = pack2<H>(s[2 * k][2], s[2 * k][3]);
        a[k][2] = pack2<H>(s[2 * k + 1][0], s[2 * k + 1][1]), a[k][3] = pack2<H>(s[2 * k + 1][2], s[2 * k + 1][3]);
    }
}

#ifdef WARPGROUPS

#define FOUR(c) "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3])

// Products of a warpgroup. `units`: c += a b, 64 x 16 by 16 x 32, both in shared memory with the
// depth along their rows. `add_units`: c += a b, 64 x 16 by 16 x 8 N, with each warp's 16 rows of a
// in registers, and b in shared memory with the depth down its columns.
template <typename H> __device__ void units(float (&c)[4][4], u64 a, u64 b);
template <typename H> __device__ void add_units(float (&c)[8][4], const u32 (&a)[4], u64 b);
template <typename H> __device__ void add_units(float (&c)[16][4], const u32 (&a)[4], u64 b);
#define UNITS(T)                                                                                                       \
    template <> __device__ __forceinline__ void units<T>(float (&c)[4][4], u64 a, u64 b) {                             \
        asm volatile("{.reg .pred p; setp.eq.u32 p, 1, 1; wgmma.mma_async.sync.aligned.m64n32k16.f32." #T "." #T " {"  \
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, p, 1, 1, 0, 0;}"\
                     : FOUR(c[0]), FOUR(c[1]), FOUR(c[2]), FOUR(c[3])                                                  \
                     : "l"(a), "l"(b));                                                                                \
    }                                                                                                                  \
    template <> __device__ __forceinline__ void add_units<T>(float (&c)[8][4], const u32 (&a)[4], u64 b) {             \
        asm volatile("{.reg .pred p; setp.eq.u32 p, 1, 1; wgmma.mma_async.sync.aligned.m64n64k16.f32." #T "." #T " {"  \
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                          \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "               \
                     "{%32, %33, %34, %35}, %36, p, 1, 1, 1;}"                                                         \
                     : FOUR(c[0]), FOUR(c[1]), FOUR(c[2]), FOUR(c[3]), FOUR(c[4]), FOUR(c[5]), FOUR(c[6]), FOUR(c[7])  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                            \
    }                                                                                                                  \
    template <> __device__ __forceinline__ void add_units<T>(float (&c)[16][4], const u32 (&a)[4], u64 b) {            \
        asm volatile("{.reg .pred p; setp.eq.u32 p, 1, 1; wgmma.mma_async.sync.aligned.m64n128k16.f32." #T "." #T " {" \
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                          \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                \
                     "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                \
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "               \
                     "{%64, %65, %66, %67}, %68, p, 1, 1, 1;}"                                                         \
                     : FOUR(c[0]), FOUR(c[1]), FOUR(c[2]), FOUR(c[3]), FOUR(c[4]), FOUR(c[5]), FOUR(c[6]), FOUR(c[7]), \
                       FOUR(c[8]), FOUR(c[9]), FOUR(c[10]), FOUR(c[11]), FOUR(c[12]), FOUR(c[13]), FOUR(c[14]), FOUR(c[15])\
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                            \
    }
UNITS(bf16)
UNITS(f16)

// The descriptor of a factor: its first byte, and the strides of slabs and of groups of eight rows.
__device__ __forceinline__ u64 factor_at(int at, int slab) {
    return (u64)((shared(at) & 0x3ffff) >> 4) | (u64)(slab >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}

// Products are issued between these two. `pin` their sums before and after.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void end_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

template <int N> __device__ __forceinline__ void pin(float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) asm volatile("" : FOUR(c[n])::"memory");
}

// s += SPAN rows of a tile of R rows, from `row` on, times the transposed 32 rows of another tile.
template <typename H, int D, int R> __device__ __forceinline__ void products(float (&s)[4][4], int tile, int row, int rows) {
    u64 left = factor_at(tile + row * 128, 16), right = factor_at(rows, 16);
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        units<H>(s, left + (k / 4 * R * 128 + k % 4 * 32) / 16, right + (k / 4 * STEP * 128 + k % 4 * 32) / 16);
}

// c += s times the 32 rows of a tile, over all D columns.
template <typename H, int D> __device__ __forceinline__ void add_rows(float (&c)[D / 8][4], const u32 (&a)[2][4], int rows) {
#pragma unroll
    for (int k = 0; k < 2; k++) add_units<H>(c, a[k], factor_at(rows + k * 16 * 128, STEP * 128));
}

#else

__device__ __forceinline__ void begin_products() {}
__device__ __forceinline__ void end_products() {}
template <int N> __device__ __forceinline__ void pin(float (&)[N][4]) {}

__device__ __forceinline__ void read4(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

__device__ __forceinline__ void read4_transposed(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

// Because a row begins at a multiple of 128, the address of column 16 k of a slab is that of its
// first column xor 32 k.
template <typename H, int D, int R> __device__ __forceinline__ void products(float (&s)[4][4], int tile, int row, int rows) {
    int lane = threadIdx.x % 32;
    u32 left = shared(tile + row * 128 + swizzle<R>(lane % 16, lane / 16));
    u32 right = shared(rows + swizzle<STEP>(lane % 8 + lane / 16 * 8, lane / 8 % 2));
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 a[4], b[4];
        read4(a, (left ^ k % 4 * 32) + k / 4 * R * 128);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            read4(b, (right ^ k % 4 * 32) + (k / 4 * STEP + n * 16) * 128);
            multiply<H>(s[2 * n], a, b[0], b[1]);
            multiply<H>(s[2 * n + 1], a, b[2], b[3]);
        }
    }
}

template <typename H, int D> __device__ __forceinline__ void add_rows(float (&c)[D / 8][4], const u32 (&a)[2][4], int rows) {
    int lane = threadIdx.x % 32;
    u32 right = shared(rows + swizzle<STEP>(lane % 16, lane / 16)), b[4];
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            read4_transposed(b, (right ^ n % 4 * 32) + (n / 4 * STEP + k * 16) * 128);
            multiply<H>(c[2 * n], a[k], b[0], b[1]);
            multiply<H>(c[2 * n + 1], a[k], b[2], b[3]);
        }
    }
}

#endif

// Stores a warp's 16 rows of sums, times a factor each, to its rows of a tile. No other warp may
// still read these.
template <typename H, int D, int R>
__device__ __forceinline__ void store_sums(int tile, const float (&c)[D / 8][4], float upper, float lower) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    unsigned char *at = tile_memory + tile + threadIdx.x % (2 * R) / 32 * 16 * 128;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        u32 *pair = reinterpret_cast<u32 *>(at + swizzle<R>(g, n) + 4 * t);
        pair[0] = pack2<H>(c[n][0] * upper, c[n][1] * upper);
        pair[8 * 32] = pack2<H>(c[n][2] * lower, c[n][3] * lower);
    }
    __syncwarp();
}

// The rotary angles of a sequence that begins at row `start`, for the leading 2 `half` dimensions.
struct Rotation {
    const float *cos, *sin;
    int half, start;
};

// Writes a warp's rows of a tile, from row `own` to `last`, and undoes their rotation.
template <typename H, int D, int R>
__device__ __forceinline__ void write_rows(H *to, u64 stride, int tile, int own, int last, int dim, Rotation rotation) {
    const unsigned char *at = tile_memory + tile + threadIdx.x % (2 * R) / 32 * 16 * 128;
    for (int i = threadIdx.x % 32; i < 2 * D; i += 32) {
        int row = i / (D / 8), piece = i % (D / 8), d = piece * 8;
        if (own + row >= last || d >= dim) continue;
        float x[8];
        load<8>(reinterpret_cast<const H *>(at + swizzle<R>(row, piece)), x);
        if (d < 2 * rotation.half) {
            bool left = d < rotation.half;
            int pair = left ? d : d - rotation.half;
            u64 angle = (u64)(own + row - rotation.start) * rotation.half + pair;
            float other[8], cos[8], sin[8];
            load<8>(reinterpret_cast<const H *>(at + swizzle<R>(row, (left ? d + rotation.half : pair) / 8)), other);
            load<8>(rotation.cos + angle, cos), load<8>(rotation.sin + angle, sin);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] = x[j] * cos[j] + (left ? other[j] : -other[j]) * sin[j];
        }
        store<8>(to + (own + row) * stride + d, x);
    }
}
