#include "attention_rows.h"

namespace tailor {

TAILOR_VECTORS float scaled(float* scores, const float* mask, float scale, int64_t count) {
  float lanes[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = kNone;
  const auto one = [&](int64_t j, int64_t l) {
    const float score = mask == nullptr ? scores[j] * scale : scores[j] * scale + mask[j];
    scores[j] = score;
    lanes[l] = score > lanes[l] ? score : lanes[l];
  };
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) one(j + l, l);
  }
  for (int64_t l = 0; j + l < count; ++l) one(j + l, l);
  float most = kNone;
  for (int64_t l = 0; l < kLanes; ++l) most = lanes[l] > most ? lanes[l] : most;
  return most;
}

TAILOR_VECTORS void multiply_by(float* row, float factor, int64_t count) {
  for (int64_t j = 0; j < count; ++j) row[j] *= factor;
}

}  // namespace tailor
