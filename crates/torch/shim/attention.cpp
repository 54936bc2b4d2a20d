// softmax(q·kᵀ·scale + mask)·v on what is kept in bf16 between forward and backward: by block products of bf16; with products of f32
// where this processor has no bf16 product.
//
// What goes by a tape (tape.h) is the output and the log-sums, which is all that the pass back wants of the one there. For f32
// as well the pass is made here then: libtorch's own operator gives no log-sums.

#include "attention.h"
#include "tape.h"

#include <torch/csrc/autograd/custom_function.h>

#include <limits>

namespace tailor {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Keys or values once for each query head: [B, K, S, Dh] → [B, H, S, Dh].
Tensor spread(const Tensor& x, int64_t groups) { return groups == 1 ? x : x.repeat_interleave(groups, 1); }

// The gradient of that.
Tensor gathered(const Tensor& gradient, const Tensor& of) {
  if (gradient.sizes() == of.sizes()) return gradient.to(of.scalar_type());
  const auto size = of.sizes();
  return gradient.reshape({size[0], size[1], -1, size[2], size[3]}).sum(2).to(of.scalar_type());
}

// Whether it goes by block products of bf16.
bool blocks(const Tensor& q) { return product_type(q) == at::kBFloat16 && has_attention_blocks(q); }

std::pair<Tensor, Tensor> in_f32(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                 bool causal, double scale) {
  if (has_wide_attention(q)) return attention_wide(q, k, v, mask, causal, scale);
  const int64_t groups = q.size(1) / k.size(1);
  const auto wide = [](const Tensor& x) { return x.to(at::kFloat); };
  const auto [y, log_sums] = at::_scaled_dot_product_flash_attention_for_cpu(
      wide(q), spread(wide(k), groups), spread(wide(v), groups), 0.0, causal, mask, scale);
  return {y.to(q.scalar_type()), log_sums};
}

// The output and the log-sums.
std::pair<Tensor, Tensor> attended(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                   bool causal, double scale) {
  if (Tape* tape = replayed_tape()) {
    Tensor out = tape->take(q.sizes(), q.scalar_type());
    return {std::move(out), tape->take()};
  }
  auto made = blocks(q) ? attention_forward(q, k, v, mask, causal, scale) : in_f32(q, k, v, mask, causal, scale);
  if (Tape* tape = recorded_tape()) {
    tape->keep(made.first);
    tape->keep(made.second);
  }
  return made;
}

struct Attend : torch::autograd::Function<Attend> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::optional<Tensor>& mask, bool causal, double scale) {
    const auto [out, log_sums] = attended(q, k, v, mask, causal, scale);
    ctx->save_for_backward({q, k, v, out, log_sums, mask.value_or(Tensor())});
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["scale"] = scale;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto saved = ctx->get_saved_variables();
    const auto wide = [](const Tensor& x) { return x.to(at::kFloat); };
    std::optional<Tensor> mask;
    if (saved[5].defined()) mask = saved[5];
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const bool causal = ctx->saved_data["causal"].toBool();
    const double scale = ctx->saved_data["scale"].toDouble();
    if (blocks(q)) {
      auto [gq, gk, gv] = attention_gradient({q, k, v, saved[3], saved[4], mask, causal, scale}, gradients[0]);
      return {gq, gk, gv, Tensor(), Tensor(), Tensor()};
    }
    if (has_wide_attention(q)) {
      auto [gq, gk, gv] = attention_wide_gradient({q, k, v, saved[3], saved[4], mask, causal, scale}, gradients[0]);
      return {gq, gk, gv, Tensor(), Tensor(), Tensor()};
    }
    const int64_t groups = q.size(1) / k.size(1);
    const auto [gq, gk, gv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        wide(gradients[0]), wide(q), spread(wide(k), groups), spread(wide(v), groups), wide(saved[3]), saved[4], 0.0,
        causal, mask, scale);
    return {gq.to(q.scalar_type()), gathered(gk, k), gathered(gv, v), Tensor(), Tensor(), Tensor()};
  }
};

// A mask as a term of the scores, [.., .., T, S] in f32.
std::optional<Tensor> as_term(std::optional<Tensor> mask) {
  if (mask && mask->scalar_type() == at::kBool) {
    mask = at::zeros(mask->sizes(), mask->options().dtype(at::kFloat))
               .masked_fill_(mask->logical_not(), -std::numeric_limits<float>::infinity());
  } else if (mask) {
    mask = mask->to(at::kFloat);
  }
  while (mask && mask->dim() < 4) mask = mask->unsqueeze(0);
  return mask;
}

// Queries in f32 over keys and values in bf16, as they are kept for serving.
Tensor over_narrow(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, bool causal,
                   double scale, bool grouped) {
  if (product_type(k) == at::kBFloat16 && has_attention_blocks(k)) {
    return attention_fine(q, k, v, as_term(mask), causal, scale);
  }
  if (q.size(2) > 1 && has_wide_attention(q)) return attention_wide(q, k, v, as_term(mask), causal, scale).first;
  return at::scaled_dot_product_attention(q, k.to(at::kFloat), v.to(at::kFloat), mask, 0.0, causal, scale, grouped);
}

}  // namespace
}  // namespace tailor

using namespace tailor;

extern "C" {

int32_t tailor_attend(const void* q, const void* k, const void* v, const void* mask, bool causal, double scale,
                      bool grouped, void** result) {
  return guarded([&] {
    const at::Tensor &query = tensor(q), &key = tensor(k), &value = tensor(v);
    std::optional<at::Tensor> seen;
    if (mask != nullptr) seen = tensor(mask);
    if (query.scalar_type() == at::kFloat && key.scalar_type() == at::kBFloat16) {
      *result = handle(over_narrow(query, key, value, seen, causal, scale, grouped));
      return;
    }
    // What is left to libtorch: a single token's, which has kernels of its own, and where the mask's gradient is wanted.
    const bool plain = query.size(2) > 1 && (!seen || !seen->requires_grad());
    const bool narrow = query.scalar_type() == at::kBFloat16;
    const bool by_tape = tailor_tape_in_use() && query.is_cpu() && query.scalar_type() == at::kFloat;
    if (plain && (by_tape || (narrow && (product_type(query) != at::kBFloat16 || has_attention_blocks(query))))) {
      *result = handle(Attend::apply(query, key, value, as_term(seen), causal, scale));
      return;
    }
    *result = handle(at::scaled_dot_product_attention(query, key, value, seen, 0.0, causal, scale, grouped));
  });
}
}
