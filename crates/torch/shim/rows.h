// Rows of numbers in f32 or bf16 as f32: what the kernels of this folder are made of. Everything here is inlined into
// functions that are compiled for several instruction sets, so nothing calls into a library.
#pragma once
#include "support.h"

#include <c10/util/BFloat16.h>

#include <cstring>

namespace tailor {

// Sums go through this many lanes, whatever the instruction set: the same bits on every processor but for fused
// multiplication and addition.
constexpr int64_t kLanes = 16;

TAILOR_INLINE float load(const float* at) { return *at; }
TAILOR_INLINE float load(const uint16_t* at) {
  const uint32_t bits = static_cast<uint32_t>(*at) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

TAILOR_INLINE void store(float* at, float value) { *at = value; }
// To nearest, ties to even; NaN stays NaN.
TAILOR_INLINE void store(uint16_t* at, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *at = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// What remains of a value once it has been stored in T.
TAILOR_INLINE float rounded(const float*, float value) { return value; }
TAILOR_INLINE float rounded(const uint16_t*, float value) {
  uint16_t kept;
  store(&kept, value);
  return load(&kept);
}

TAILOR_INLINE float sum_of(const float* lanes) {
  float sum = 0;
  for (int64_t j = 0; j < kLanes; ++j) sum += lanes[j];
  return sum;
}

// e^x to about 2 ulp, for x from -87 to 88; below that 0, above it about 2^127. Cephes' polynomial (S. L. Moshier).
TAILOR_INLINE float exp_of(float x) {
  const float top = 88.0f, bottom = -87.0f;
  const float held = x > top ? top : (x < bottom ? bottom : x);
  const float shifted = held * 1.44269504088896341f + 12582912.0f;  // 1.5 · 2^23: the fraction is rounded away
  const float n = shifted - 12582912.0f;
  float r = held - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t whole;
  std::memcpy(&whole, &shifted, sizeof whole);
  const uint32_t exponent = (whole << 23) + 0x3f800000u;  // the low bits of the shifted value are n
  float power;
  std::memcpy(&power, &exponent, sizeof power);
  const float result = p * power;
  return x < bottom ? 0.0f : (x != x ? x : result);
}

// Calls `f` with a pointer of the tensor's element type. bf16 goes as its bits.
template <typename F>
void with_type(const at::Tensor& x, F&& f) {
  if (x.scalar_type() == at::kFloat) {
    f(static_cast<const float*>(x.const_data_ptr()));
  } else {
    TORCH_CHECK(x.scalar_type() == at::kBFloat16, "float32 or bfloat16 is needed, not ", x.scalar_type());
    f(static_cast<const uint16_t*>(x.const_data_ptr()));
  }
}

template <typename T>
T* data_of(const at::Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

}  // namespace tailor
