// Norm, gated feed-forward, rotary positions, attention and cross-entropy where kernels run: autograd functions that
// launch them. What each saves is said by its `save_for_backward`, and is all it saves.

#include "common.h"
#include "device.h"
#include "tape.h"

#include <tuple>

namespace {

using namespace tailor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr uint32_t THREADS = 256;

// Adds the ending of the variant with whole 16-byte accesses where `wide` allows it.
std::string variant(const char* kernel, const Tensor& like, bool wide) {
  return std::string(kernel) + type_name(like) + (wide ? "_vec" : "");
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static bool wide(const Tensor& x, const Tensor& weight) {
    return weight.numel() % vector_width(x) == 0 && aligned16(x) && aligned16(weight);
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& given, const Tensor& weight, double epsilon, int64_t one_plus) {
    const Tensor x = given.contiguous();
    const int64_t width = weight.numel(), rows = x.numel() / width;
    Tensor y = at::empty_like(x);
    Tensor r = at::empty({rows}, x.options().dtype(at::kFloat));
    launch(x, variant("tailor_rms_norm_", x, wide(x, weight)), rows, THREADS, x.data_ptr(), weight.data_ptr(),
           y.data_ptr(), r.data_ptr<float>(), uint32_t(width), float(epsilon), uint32_t(one_plus));
    ctx->save_for_backward({x, weight, r});
    ctx->saved_data["one_plus"] = one_plus;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &r = saved[2];
    const Tensor gradient = gradients[0].contiguous();
    const int64_t width = weight.numel();
    Tensor gx = at::empty_like(x);
    launch(x, variant("tailor_rms_norm_backward_", x, wide(x, weight) && aligned16(gradient)), x.numel() / width, THREADS,
           gradient.data_ptr(), x.data_ptr(), weight.data_ptr(), r.data_ptr<float>(), gx.data_ptr(), uint32_t(width),
           uint32_t(ctx->saved_data["one_plus"].toInt()));
    return {gx, Tensor(), Tensor(), Tensor()};
  }
};

// Elements from row to row of [.., F] whose rows lie evenly spaced, each without gaps; 0 where they do not.
int64_t row_stride(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  if (x.stride(last) != 1) return 0;
  if (x.numel() == x.size(last)) return x.size(last);
  int64_t stride = 0, inner = 0;  // of the innermost dimension that has more than one place, and what lies in it
  for (int64_t d = last - 1; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (stride == 0) {
      stride = x.stride(d);
    } else if (x.stride(d) != inner) {
      return 0;
    }
    inner = x.stride(d) * x.size(d);
  }
  return stride;
}

struct Gated : torch::autograd::Function<Gated> {
  // How a launch goes over gate and up: values at a time, and rows.
  struct Plan {
    bool vector;
    int64_t units, parts, stride;

    Plan(const Tensor& gate, const Tensor& up, bool others_aligned) : stride(row_stride(gate)) {
      const int64_t width = gate.size(-1), lanes = vector_width(gate);
      vector = width % lanes == 0 && stride % lanes == 0 && aligned16(gate) && aligned16(up) && others_aligned;
      parts = width / (vector ? lanes : 1);
      units = gate.numel() / (vector ? lanes : 1);
      TORCH_CHECK(units < (int64_t(1) << 32), "a gate of ", gate.sizes(), " is too large for one launch: use fewer tokens");
    }
  };

  static Tensor forward(AutogradContext* ctx, const Tensor& some_gate, const Tensor& some_up, int64_t activation) {
    const int64_t stride = row_stride(some_gate);
    const bool as_they_lie = stride > 0 && stride == row_stride(some_up);
    const Tensor gate = as_they_lie ? some_gate : some_gate.contiguous(), up = as_they_lie ? some_up : some_up.contiguous();
    Tensor y = at::empty(gate.sizes(), gate.options());
    const Plan plan(gate, up, true);
    launch(gate, variant("tailor_gated_", gate, plan.vector), ceil_div(plan.units, THREADS), THREADS, gate.data_ptr(),
           up.data_ptr(), y.data_ptr(), uint32_t(plan.units), uint32_t(plan.parts), (unsigned long long)(plan.stride),
           uint32_t(activation));
    ctx->save_for_backward({gate, up});
    ctx->saved_data["activation"] = activation;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1];
    const Tensor gradient = gradients[0].contiguous();
    Tensor g_gate = at::empty(gate.sizes(), gate.options()), g_up = at::empty(gate.sizes(), gate.options());
    const Plan plan(gate, up, aligned16(gradient));
    launch(gate, variant("tailor_gated_backward_", gate, plan.vector), ceil_div(plan.units, THREADS), THREADS,
           gradient.data_ptr(), gate.data_ptr(), up.data_ptr(), g_gate.data_ptr(), g_up.data_ptr(), uint32_t(plan.units),
           uint32_t(plan.parts), (unsigned long long)(plan.stride), uint32_t(ctx->saved_data["activation"].toInt()));
    return {g_gate, g_up, Tensor()};
  }
};

// x [B, H, T, Dh] turned; the result's memory is [B, T, H, Dh], which is what projections give and attention takes.
Tensor turned(const Tensor& given, const Tensor& cos, const Tensor& sin, float sign) {
  const int64_t batch = given.size(0), heads = given.size(1), tokens = given.size(2), width = given.size(3);
  Tensor x = given.transpose(1, 2);  // [B, T, H, Dh]
  const bool laid_out = x.stride(3) == 1 && (heads == 1 || x.stride(2) == width) &&
                        (batch == 1 || x.stride(0) == tokens * x.stride(1));
  if (!laid_out) x = x.contiguous();
  const int64_t stride = tokens == 1 ? (batch == 1 ? heads * width : x.stride(0)) : x.stride(1);
  Tensor y = at::empty_strided({batch, heads, tokens, width}, {tokens * heads * width, width, heads * width, 1},
                               given.options());
  const int64_t half = width / 2, lanes = vector_width(x);
  const bool vector = half % lanes == 0 && stride % lanes == 0 && aligned16(x) && aligned16(cos) && aligned16(sin);
  const int64_t pairs = batch * tokens * heads * half;
  launch(x, variant("tailor_rope_", x, vector), ceil_div(pairs / (vector ? lanes : 1), THREADS), THREADS, x.data_ptr(),
         cos.data_ptr(), sin.data_ptr(), y.data_ptr(), (unsigned long long)(pairs), uint32_t(heads), uint32_t(half),
         (unsigned long long)(stride), (unsigned long long)(cos.numel() / width), sign);
  return y;
}

struct Rope : torch::autograd::Function<Rope> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return turned(x, cos, sin, 1.0f);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    return {turned(gradients[0], saved[0], saved[1], -1.0f), Tensor(), Tensor()};
  }
};

// libtorch's flash attention (arXiv 2307.08691) with sequence starts, which its own layer never passes on.
struct AttendTexts : torch::autograd::Function<AttendTexts> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& starts,
                        int64_t longest, double scale, bool causal) {
    Tensor out, logsumexp, seed, unused;
    if (Tape* tape = replayed_tape()) {
      out = tape->take(q.sizes(), q.scalar_type());
      for (Tensor* made : {&logsumexp, &seed, &unused}) *made = tape->take();
    } else {
      std::tie(out, logsumexp, seed, unused, std::ignore) =
          at::_flash_attention_forward(q, k, v, starts, starts, longest, longest, /*dropout_p=*/0.0, causal,
                                       /*return_debug_mask=*/false, std::optional<double>(scale));
    }
    if (Tape* tape = recorded_tape()) {
      for (const Tensor* made : {&out, &logsumexp, &seed, &unused}) tape->keep(*made);
    }
    ctx->save_for_backward({q, k, v, out, logsumexp, starts, seed, unused});
    ctx->saved_data["longest"] = longest;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["causal"] = causal;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const int64_t longest = ctx->saved_data["longest"].toInt();
    auto [gq, gk, gv] = at::_flash_attention_backward(
        gradients[0].contiguous(), saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[5], longest, longest,
        /*dropout_p=*/0.0, ctx->saved_data["causal"].toBool(), saved[6], saved[7],
        std::optional<double>(ctx->saved_data["scale"].toDouble()));
    return {gq, gk, gv, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

int32_t tailor_device_rms_norm(const void* x, const void* weight, double epsilon, int32_t one_plus, void** result) {
  return shielded([&] {
    const Tensor &input = tensor_of(x), &scale = tensor_of(weight);
    TORCH_CHECK(scale.dim() == 1 && scale.is_contiguous() && input.size(-1) == scale.numel(), "norm of ", scale.numel(),
                " values over rows of ", input.size(-1));
    TORCH_CHECK(input.scalar_type() == scale.scalar_type(), "norm in ", scale.scalar_type(), " over ", input.scalar_type());
    *result = new_handle(RmsNorm::apply(input, scale, epsilon, int64_t(one_plus)));
  });
}

int32_t tailor_device_gated(const void* gate, const void* up, int32_t activation, void** result) {
  return shielded([&] {
    const Tensor &left = tensor_of(gate), &right = tensor_of(up);
    TORCH_CHECK(left.sizes() == right.sizes() && left.scalar_type() == right.scalar_type(), "gate ", left.sizes(), " and up ",
                right.sizes(), " differ in shape or type");
    TORCH_CHECK(activation == 0 || activation == 1, "activation ", activation, " has no kernel");
    *result = new_handle(Gated::apply(left, right, int64_t(activation)));
  });
}

int32_t tailor_rope(const void* x, const void* cos, const void* sin, void** result) {
  return shielded([&] {
    const Tensor &input = tensor_of(x), cosines = tensor_of(cos).contiguous(), sines = tensor_of(sin).contiguous();
    TORCH_CHECK(input.dim() == 4 && input.size(3) % 2 == 0, "positions turn [B, H, T, Dh] with Dh even, not ", input.sizes());
    const int64_t rows = cosines.numel() / input.size(3);
    TORCH_CHECK(cosines.sizes() == sines.sizes() && cosines.size(-1) == input.size(3) &&
                    (rows == input.size(2) || rows == input.size(0) * input.size(2)),
                "angles ", cosines.sizes(), " do not fit ", input.sizes());
    TORCH_CHECK(cosines.scalar_type() == input.scalar_type(), "angles in ", cosines.scalar_type(), " for ", input.scalar_type());
    *result = new_handle(Rope::apply(input, cosines, sines));
  });
}

int32_t tailor_attend_texts(const void* q, const void* k, const void* v, const void* starts, int64_t longest,
                            double scale, int32_t causal, void** result) {
  return shielded([&] {
    const Tensor& begins = tensor_of(starts);
    TORCH_CHECK(begins.scalar_type() == at::kInt && begins.dim() == 1, "starts of texts are i32 [texts + 1]");
    *result = new_handle(AttendTexts::apply(tensor_of(q), tensor_of(k), tensor_of(v), begins, longest, scale, causal != 0));
  });
}

int32_t tailor_device_cross_entropy(void* logits, const void* labels, const void* weights, double weight, void** losses) {
  return shielded([&] {
    const Tensor &x = tensor_of(logits), &wanted = tensor_of(labels);
    TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "logits are [n, V] without gaps, not ", x.sizes());
    TORCH_CHECK(wanted.scalar_type() == at::kLong && wanted.is_contiguous() && wanted.numel() == x.size(0), "labels ",
                wanted.sizes(), " do not fit logits ", x.sizes());
    if (weights != nullptr) {
      const Tensor& each = tensor_of(weights);
      TORCH_CHECK(each.scalar_type() == at::kFloat && each.is_contiguous() && each.numel() == x.size(0), "weights ",
                  each.sizes(), " do not fit logits ", x.sizes());
    }
    const int64_t vocabulary = x.size(1);
    TORCH_CHECK(vocabulary > 0 && vocabulary < (int64_t(1) << 31), "a vocabulary of ", vocabulary);
    Tensor result = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
    const uint32_t threads = vocabulary >= 4096 ? 1024 : 256;
    launch(x, "tailor_cross_entropy_" + type_name(x), x.size(0), threads, x.data_ptr(), wanted.data_ptr<int64_t>(),
           data_or_null<float>(weights), float(weight), result.data_ptr<float>(), uint32_t(vocabulary));
    *losses = new_handle(result);
  });
}
}
