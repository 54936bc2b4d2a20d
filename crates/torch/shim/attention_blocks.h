// What attention's two passes (`attention_forward.cpp`, `attention_gradient.cpp`) are made of: libtorch's block products of bf16
// (`cpublas::brgemm`, by the processor's tiles where it has some), and how their right sides lie.
#pragma once
#include "attention_rows.h"

#include <ATen/native/CPUBlas.h>

#include <algorithm>

namespace tailor {

using Bits = uint16_t;

// A product's right side lies in panels of so many columns at most, pairs of rows beside each other.
constexpr int64_t kPanel = 64;
// Whole steps of a width.
constexpr int64_t kStep = 16;

inline int64_t whole(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// C [m, n] = or += A [m, k]·B [k, n], of which n columns are one panel.
inline void multiply(int64_t m, int64_t n, int64_t k, const Bits* a, int64_t a_stride, const Bits* panel, float* c,
                     int64_t c_stride, bool add) {
  at::native::cpublas::brgemm(m, n, k, a_stride, n, c_stride, add, reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(panel), c);
}

// Rows of one head, `stride` apart.
struct Rows {
  const Bits* at;
  int64_t stride, count, width;

  const Bits* row(int64_t i) const { return at + i * stride; }

  Rows from(int64_t first, int64_t most) const { return {row(first), stride, std::min(most, count - first), width}; }
};

Rows rows_of(const at::Tensor& x, int64_t batch, int64_t head);

// xᵀ [width, padded rows] as panels of its columns: [padded/64, width/2, 64, 2].
void place_turned(const Rows& x, int64_t padded, Bits* to);

// x [padded rows, width] as panels of its columns: [width/64, padded/2, 64 or the rest, 2].
void place(const Rows& x, int64_t padded, Bits* to);

// Two rows as pairs.
void interleave(const Bits* even, const Bits* odd, Bits* to, int64_t count);

}  // namespace tailor
