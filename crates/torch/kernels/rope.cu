// Rotary positions (RoFormer, arXiv 2104.09864 §3.4.2) in the half-split layout: pairs are (i, i + Dh/2).
//
// x is [N, H, Dh] whose tokens may lie further apart than H·Dh (a slice of a wider product); y is [N, H, Dh] without
// gaps. Rows of cos and sin, [rows, Dh] of which the first half is read, are those of token n mod rows. `sign` is 1, or
// −1 for the backward pass, which turns the other way. In f32, rounded once.

template <class T, int V>
__device__ __forceinline__ void rope(const T* x, const T* cos, const T* sin, T* y, u64 pairs, u32 heads, u32 half,
                                     u64 stride, u64 rows, float sign) {
  const u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * V;  // of N·H·Dh/2 pairs
  if (at >= pairs) return;
  const u32 i = u32(at % half);
  const u64 head = at / half, token = head / heads;
  const T* from = x + token * stride + (head % heads) * (2ull * half) + i;
  T* to = y + head * (2ull * half) + i;
  const u64 row = (token % rows) * (2ull * half) + i;
  const Pack<T, V> first = load<T, V>(from), second = load<T, V>(from + half);
  const Pack<T, V> cosines = load<T, V>(cos + row), sines = load<T, V>(sin + row);
  float turned_first[V], turned_second[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const float a = to_float(first.at[j]), b = to_float(second.at[j]);
    const float c = to_float(cosines.at[j]), s = to_float(sines.at[j]) * sign;
    turned_first[j] = a * c - b * s;
    turned_second[j] = b * c + a * s;
  }
  store<V>(to, turned_first);
  store<V>(to + half, turned_second);
}

#define ROPE(NAME, T, V)                                                                                         \
  extern "C" __global__ void __launch_bounds__(256) tailor_rope_##NAME(const T* x, const T* cos, const T* sin,   \
                                                                       T* y, u64 pairs, u32 heads, u32 half,     \
                                                                       u64 stride, u64 rows, float sign) {       \
    rope<T, V>(x, cos, sin, y, pairs, heads, half, stride, rows, sign);                                          \
  }
ROPE(bf16, bf16, 1)
ROPE(bf16_vec, bf16, 8)
ROPE(f32, float, 1)
ROPE(f32_vec, float, 4)
