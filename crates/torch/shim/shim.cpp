#include "shim.h"

#include "common.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <string>
#include <vector>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

thread_local std::string last_error;

template <typename F>
int32_t guarded(F&& body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    last_error = error.what_without_backtrace();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}

const Tensor& tensor(const void* handle) { return *static_cast<const Tensor*>(handle); }

void* handle(Tensor value) { return new Tensor(std::move(value)); }

// ---- 4-bit linear --------------------------------------------------------------------------------------------------

// One buffer a thread, grown to the largest weight seen: a fresh allocation per layer would page-fault every time.
thread_local Tensor scratch;

Tensor scratch_of(int64_t out, int64_t in, at::ScalarType dtype) {
  const int64_t bytes = out * in * static_cast<int64_t>(c10::elementSize(dtype));
  if (!scratch.defined() || scratch.numel() < bytes) {
    scratch = Tensor();  // free before allocating the larger one
    scratch = at::empty({bytes}, at::kByte);
  }
  return scratch.narrow(0, 0, bytes).view(dtype).view({out, in});
}

struct Weight : torch::CustomClassHolder {
  const void* self;
  const TailorWeightOps* ops;
  int64_t out, in;

  Weight(const void* self, const TailorWeightOps* ops, int64_t out, int64_t in)
      : self(self), ops(ops), out(out), in(in) {
    ops->retain(self);
  }
  ~Weight() override { ops->release(self); }

  // [out, in], valid until the next call on this thread.
  Tensor dequantize(at::ScalarType dtype) const {
    TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "4-bit weights compute in float32 or bfloat16, not ", dtype);
    Tensor w = scratch_of(out, in, dtype);
    const int32_t kind = dtype == at::kFloat ? TAILOR_F32 : TAILOR_BF16;
    TORCH_CHECK(ops->dequantize(self, w.data_ptr(), kind) == 0, "weight could not be dequantised");
    return w;
  }
};

struct QuantLinear : torch::autograd::Function<QuantLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& bias,
                        c10::intrusive_ptr<Weight> weight) {
    ctx->saved_data["weight"] = c10::IValue::make_capsule(weight);
    ctx->saved_data["bias"] = bias.has_value();
    return at::linear(x, weight->dequantize(x.scalar_type()), bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto weight = c10::static_intrusive_pointer_cast<Weight>(ctx->saved_data["weight"].toCapsule());
    const Tensor& gy = gradients[0];  // [.., out]
    Tensor gx, gbias;
    if (ctx->needs_input_grad(0)) {
      gx = at::matmul(gy, weight->dequantize(gy.scalar_type()));  // [.., in]
    }
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(1)) {
      gbias = gy.reshape({-1, weight->out}).sum(0);
    }
    return {gx, gbias, Tensor()};
  }
};

// ---- LoRA ----------------------------------------------------------------------------------------------------------

// Saving x in its own type and x·Aᵀ [.., R], instead of x in the type of A, is what this adds to plain operators.
struct Lora : torch::autograd::Function<Lora> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b,
                        double scale) {
    Tensor h = at::linear(x.to(a.scalar_type()), a);  // [.., R]
    ctx->save_for_backward({x, a, b, h});
    ctx->saved_data["scale"] = scale;
    return at::add(y, at::linear(h, b), scale).to(y.scalar_type());
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &a = saved[1], &b = saved[2], &h = saved[3];
    const double scale = ctx->saved_data["scale"].toDouble();
    const Tensor& gy = gradients[0];
    const int64_t in = a.size(1), out = b.size(0), rank = a.size(0);
    Tensor g = gy.to(b.scalar_type()).reshape({-1, out}).mul(scale);  // [N, out]
    Tensor gx, ga, gb;
    if (ctx->needs_input_grad(3)) {
      gb = at::mm(g.t(), h.reshape({-1, rank}));  // [out, R]
    }
    if (ctx->needs_input_grad(1) || ctx->needs_input_grad(2)) {
      Tensor gh = at::mm(g, b);  // [N, R]
      if (ctx->needs_input_grad(2)) {
        ga = at::mm(gh.t(), x.reshape({-1, in}).to(a.scalar_type()));  // [R, in]
      }
      if (ctx->needs_input_grad(1)) {
        gx = at::mm(gh, a).view(x.sizes()).to(x.scalar_type());
      }
    }
    return {ctx->needs_input_grad(0) ? gy : Tensor(), gx, ga, gb, Tensor()};
  }
};

at::Generator cpu_generator() { return at::detail::getDefaultCPUGenerator(); }

}  // namespace

void tailor::set_last_error(std::string message) { last_error = std::move(message); }

extern "C" {

int32_t tailor_quant_linear(const void* x, const void* bias, const void* self, const TailorWeightOps* ops, int64_t out,
                            int64_t in, void** result) {
  return guarded([&] {
    std::optional<Tensor> maybe_bias;
    if (bias != nullptr) maybe_bias = tensor(bias);
    auto weight = c10::make_intrusive<Weight>(self, ops, out, in);
    TORCH_CHECK(tensor(x).size(-1) == in, "input has ", tensor(x).size(-1), " features, the weight takes ", in);
    *result = handle(QuantLinear::apply(tensor(x), maybe_bias, weight));
  });
}

int32_t tailor_lora(const void* y, const void* x, const void* a, const void* b, double scale, void** result) {
  return guarded([&] { *result = handle(Lora::apply(tensor(y), tensor(x), tensor(a), tensor(b), scale)); });
}

int32_t tailor_backward(const void* const* tensors, const void* const* gradients, size_t count, bool keep_graph) {
  return guarded([&] {
    variable_list roots, seeds;
    for (size_t i = 0; i < count; ++i) {
      roots.push_back(tensor(tensors[i]));
      seeds.push_back(gradients[i] == nullptr ? Tensor() : tensor(gradients[i]));
    }
    torch::autograd::backward(roots, seeds, keep_graph, /*create_graph=*/false);
  });
}

int32_t tailor_rng_state(void** result) {
  return guarded([&] {
    Tensor state = cpu_generator().get_state();
    if (const auto gpu = tailor::gpu_generator()) state = at::cat({state, gpu->get_state()});
    *result = handle(state);
  });
}

int32_t tailor_set_rng_state(const void* state) {
  return guarded([&] {
    const Tensor& both = tensor(state);
    const auto gpu = tailor::gpu_generator();
    const int64_t of_cpu = cpu_generator().get_state().numel();
    if (!gpu || both.numel() <= of_cpu) return cpu_generator().set_state(both);
    cpu_generator().set_state(both.narrow(0, 0, of_cpu).clone());
    at::Generator(*gpu).set_state(both.narrow(0, of_cpu, both.numel() - of_cpu).clone());
  });
}

void tailor_drop_scratch() { scratch = Tensor(); }

const char* tailor_last_error() { return last_error.c_str(); }
}
