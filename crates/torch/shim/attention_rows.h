// What attention's passes make of a row of scores, and how their tensors lie, whatever their products are made of.
#pragma once
#include "rows.h"

#include <limits>

namespace tailor {

// The score of what nobody sees.
constexpr float kNone = -std::numeric_limits<float>::infinity();

// Scales a row's scores, adds the mask (which may be null), and gives the largest.
float scaled(float* scores, const float* mask, float scale, int64_t count);

void multiply_by(float* row, float factor, int64_t count);

// With values of a row beside each other.
inline at::Tensor beside(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

// [B, H, T, Dh] that lies in memory as [B, T, H, Dh], as the layers around it want it.
inline at::Tensor heads_inside(at::IntArrayRef size, const at::Tensor& like) {
  return at::empty({size[0], size[2], size[1], size[3]}, like.options()).transpose(1, 2);
}

}  // namespace tailor
