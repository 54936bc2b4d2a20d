// Types, conversions and reductions that all kernels use. No header of CUDA is needed: NVRTC knows the rest itself.
//
// The text also compiles on a host (kernels/host): what is written in PTX has its arithmetic in C++ beside it.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define INFINITE __uint_as_float(0x7f800000u)
#define NOT_A_NUMBER __uint_as_float(0x7fc00000u)

struct bf16 {
  u16 bits;
};

// As many values as one memory access takes.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// To nearest, ties to even; a NaN stays one.
__device__ __forceinline__ bf16 to_bf16(float x) {
  bf16 y;
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  const u32 bits = __float_as_uint(x);
  y.bits = x != x ? u16(0x7fff) : u16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
  return y;
}

template <class T>
struct As;
template <>
struct As<float> {
  __device__ static __forceinline__ float of(float x) { return x; }
};
template <>
struct As<bf16> {
  __device__ static __forceinline__ bf16 of(float x) { return to_bf16(x); }
};

// The nearest number of type T, as f32.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(As<T>::of(x));
}

// The nearest f16, as f32. Subnormals and overflow as IEEE 754 has them.
__device__ __forceinline__ float round_f16(float x) {
#ifdef __CUDA_ARCH__
  u16 half;
  float y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(half));
  return y;
#else
  const float magnitude = fabsf(x);
  if (!(magnitude < 65520.0f)) return x != x ? x : copysignf(INFINITE, x);
  // The unit in the last place of f16 here, at least that of its subnormals.
  const float unit = magnitude < 6.103515625e-05f
                         ? 5.9604644775390625e-08f
                         : __uint_as_float((__float_as_uint(magnitude) & 0x7f800000u) - (10u << 23));
  return copysignf(nearbyintf(magnitude / unit) * unit, x);
#endif
}

template <class T, int V>
__device__ __forceinline__ Pack<T, V> load(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

// Eight values of bf16 that one access has brought.
__device__ __forceinline__ void widen8(const Pack<u32, 4>& words, float (&to)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words.at[i] << 16);
    to[2 * i + 1] = __uint_as_float(words.at[i] & 0xffff0000u);
  }
}

// 8 bytes that nobody reads again: they need not stay in the caches.
__device__ __forceinline__ Pack<u32, 2> load_once(const u8* from) {
#ifdef __CUDA_ARCH__
  Pack<u32, 2> words;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(words.at[0]), "=r"(words.at[1])
               : "l"(from));
  return words;
#else
  return *reinterpret_cast<const Pack<u32, 2>*>(from);
#endif
}

// c += A·B over a warp: A 16×16, B 16×8, both bf16 in pairs, c f32. Fragments as PTX has them for mma.m16n8k16.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  host::mma_bf16(c, a, b0, b1);
#endif
}

// Two values beside each other in memory, the low one first.
__device__ __forceinline__ u32 bf16_pair(float low, float high) {
#ifdef __CUDA_ARCH__
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return u32(to_bf16(low).bits) | u32(to_bf16(high).bits) << 16;
#endif
}

// 16 bytes by one access. Said in PTX, since the compiler cuts some of them up.
__device__ __forceinline__ void store_words(void* to, u32 a, u32 b, u32 c, u32 d) {
#ifdef __CUDA_ARCH__
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
#else
  *static_cast<Pack<u32, 4>*>(to) = {{a, b, c, d}};
#endif
}

// V values, one or 16 bytes of them, rounded to the type of their place.
template <int V>
__device__ __forceinline__ void store(bf16* to, const float (&values)[V]) {
  static_assert(V == 1 || V == 8, "one value or 16 bytes");
  if constexpr (V == 1) {
    *to = to_bf16(values[0]);
  } else {
    store_words(to, bf16_pair(values[0], values[1]), bf16_pair(values[2], values[3]), bf16_pair(values[4], values[5]),
                bf16_pair(values[6], values[7]));
  }
}

template <int V>
__device__ __forceinline__ void store(float* to, const float (&values)[V]) {
  static_assert(V == 1 || V == 4, "one value or 16 bytes");
  if constexpr (V == 1) {
    *to = values[0];
  } else {
    store_words(to, __float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                __float_as_uint(values[3]));
  }
}

// Reductions over a block of whole warps, at most 1024 threads; every thread gets the result, in one fixed order.
// `shared` has 32 places. All threads of the block must come here.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
  __syncthreads();  // whoever still reads what an earlier reduction left
  if ((threadIdx.x & 31u) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  float sum = 0.0f;
  for (u32 warp = 0; warp < blockDim.x >> 5; ++warp) sum += shared[warp];
  return sum;
}

__device__ __forceinline__ float block_max(float x, float* shared) {
  for (int lane = 16; lane > 0; lane >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
  __syncthreads();
  if ((threadIdx.x & 31u) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  float largest = shared[0];
  for (u32 warp = 1; warp < blockDim.x >> 5; ++warp) largest = fmaxf(largest, shared[warp]);
  return largest;
}
