// Cross-entropy with its own backward pass over a constant head: logits are made for some rows, turned into their
// gradient where they lie, and multiplied back. No second copy of them exists.

#include "rows.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace tailor {
namespace {

using at::Tensor;

// Values of a head in another type that are brought into the product's type at once.
constexpr int64_t kHeadSlice = int64_t{1} << 23;

// −ln softmax(z)[label]; z becomes (softmax(z) − onehot(label))·weight.
template <typename T>
TAILOR_INLINE double entropy_row(T* z, int64_t count, int64_t label, float weight) {
  float lanes[kLanes];
  for (float& lane : lanes) lane = -std::numeric_limits<float>::infinity();
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const float v = load(z + j + l);
      lanes[l] = v > lanes[l] ? v : lanes[l];
    }
  }
  float top = lanes[0];
  for (float lane : lanes) top = lane > top ? lane : top;
  for (; j < count; ++j) top = load(z + j) > top ? load(z + j) : top;
  // In pieces, so that no sum of f32 grows long: a vocabulary has hundreds of thousands of words.
  double sum = 0;
  for (int64_t piece = 0; piece < count; piece += 4096) {
    const int64_t end = piece + 4096 < count ? piece + 4096 : count;
    float sums[kLanes] = {};
    int64_t i = piece;
    for (; i + kLanes <= end; i += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) sums[l] += exp_of(load(z + i + l) - top);
    }
    float own = sum_of(sums);
    for (; i < end; ++i) own += exp_of(load(z + i) - top);
    sum += own;
  }
  const double log_sum = std::log(sum) + top;
  const double loss = log_sum - load(z + label);
  const float shift = static_cast<float>(log_sum);
  const float at_label = (exp_of(load(z + label) - shift) - 1.0f) * weight;
  for (int64_t i = 0; i < count; ++i) store(z + i, exp_of(load(z + i) - shift) * weight);
  store(z + label, at_label);
  return loss;
}
TAILOR_VECTORS double entropy_f32(float* z, int64_t n, int64_t label, float w) { return entropy_row(z, n, label, w); }
TAILOR_VECTORS double entropy_bf16(uint16_t* z, int64_t n, int64_t label, float w) { return entropy_row(z, n, label, w); }
double entropy(float* z, int64_t n, int64_t label, float w) { return entropy_f32(z, n, label, w); }
double entropy(uint16_t* z, int64_t n, int64_t label, float w) { return entropy_bf16(z, n, label, w); }

}  // namespace
}  // namespace tailor

using namespace tailor;

extern "C" {

int32_t tailor_cross_entropy(const void* states, const void* head, const void* labels, const void* weights,
                             double weight, double* loss, void** gradient) {
  return guarded([&] {
    const at::Tensor x = tensor(states).detach(), w = tensor(head).detach();  // [n, D], [V, D]
    const at::Tensor own = tensor(labels).contiguous();
    TORCH_CHECK(x.dim() == 2 && w.dim() == 2 && x.size(1) == w.size(1) && own.dim() == 1 && own.size(0) == x.size(0) &&
                    own.scalar_type() == at::kLong,
                "states ", x.sizes(), ", head ", w.sizes(), " and labels ", own.sizes(), " do not fit");
    at::Tensor each;
    if (weights != nullptr) {
      each = tensor(weights).to(at::kFloat).contiguous();
      TORCH_CHECK(each.sizes() == own.sizes(), "weights ", each.sizes(), " for labels ", own.sizes());
    }
    const int64_t rows = x.size(0), vocab = w.size(0), width = w.size(1);
    const int64_t* label = own.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < rows; ++i) {
      TORCH_CHECK(label[i] >= 0 && label[i] < vocab, "label ", label[i], " is not below ", vocab);
    }
    const auto type = product_type(x);
    const at::Tensor in = x.to(type);
    at::Tensor z = at::empty({rows, vocab}, x.options().dtype(type));
    at::Tensor back = at::zeros({rows, width}, x.options().dtype(at::kFloat));
    // The head in the product's type, some of its rows at a time where it has another.
    const int64_t step = w.scalar_type() == type ? vocab : std::max<int64_t>(1, kHeadSlice / width);
    const auto slice = [&](int64_t first, int64_t count) {
      const at::Tensor part = w.narrow(0, first, count);
      return step == vocab ? part : scratch_of({count, width}, type).copy_(part);
    };
    for (int64_t first = 0; first < vocab; first += step) {
      const int64_t count = std::min(step, vocab - first);
      at::Tensor target = z.narrow(1, first, count);
      at::mm_out(target, in, slice(first, count).t());
    }
    std::vector<double> losses(static_cast<size_t>(rows));
    with_type(z, [&](auto* of) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(of)>>;
      T* logits = data_of<T>(z);
      const float* factors = each.defined() ? each.const_data_ptr<float>() : nullptr;
      at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const float factor = factors == nullptr ? static_cast<float>(weight) : factors[i];
          losses[i] = entropy(logits + i * vocab, vocab, label[i], factor);
        }
      });
    });
    for (int64_t first = 0; first < vocab; first += step) {
      const int64_t count = std::min(step, vocab - first);
      const at::Tensor part = z.narrow(1, first, count);
      if (type == at::kFloat) {
        back.addmm_(part, slice(first, count));
      } else {
        back.add_(at::mm(part, slice(first, count)));
      }
    }
    double sum = 0;
    for (double one : losses) sum += one;
    *loss = sum;
    *gradient = handle(back.to(x.scalar_type()));
  });
}
}
