// Attention's forward pass (`attention_forward.cpp`), what it keeps, and its gradients (`attention_gradient.cpp`).
#pragma once
#include "support.h"

#include <optional>
#include <utility>

namespace tailor {

// `q`, `out` [B, H, T, Dh], `k`, `v` [B, K, S, Dh] with K dividing H, `log_sums` [B, H, T] in f32: the logarithm of each
// query's sum of e^score. `mask` is added to the scores, [1 or B, 1 or H, T or 1, S or 1] in f32.
struct AttentionPass {
  at::Tensor q, k, v, out, log_sums;
  std::optional<at::Tensor> mask;
  bool causal;
  double scale;
};

struct AttentionGradients {
  at::Tensor q, k, v;
};

// Whether this processor has what the two passes are made of (`attention_blocks.h`), and `x`, keys or queries, is of their type
// and width.
bool has_attention_blocks(const at::Tensor& x);

// A pass' output and log-sums.
std::pair<at::Tensor, at::Tensor> attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                    const std::optional<at::Tensor>& mask, bool causal, double scale);

// The output in f32 of queries in f32 beside keys and values in bf16, which nobody wants a gradient of. Queries and weights count
// with 16 significant bits.
at::Tensor attention_fine(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const std::optional<at::Tensor>& mask, bool causal, double scale);

AttentionGradients attention_gradient(const AttentionPass& pass, const at::Tensor& gradient);

// Both passes with products of f32, of tensors in f32 or bf16 (`attention_wide.cpp`), and whether they are there. Queries in f32 may
// have keys and values in bf16 beside them where nobody wants a gradient.
bool has_wide_attention(const at::Tensor& x);
std::pair<at::Tensor, at::Tensor> attention_wide(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                 const std::optional<at::Tensor>& mask, bool causal, double scale);
AttentionGradients attention_wide_gradient(const AttentionPass& pass, const at::Tensor& gradient);

}  // namespace tailor
