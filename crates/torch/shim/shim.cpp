// Errors, handles, the backward pass, the random generator.

#include "support.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include <atomic>
#include <vector>

namespace tailor {

thread_local std::string last_error;

namespace {

bool processor_multiplies_bf16() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return true;
#endif
}

std::atomic<bool> bf16_products{processor_multiplies_bf16()};

thread_local at::Tensor scratch;

}  // namespace

at::ScalarType product_type(const at::Tensor& x) {
  const auto dtype = x.scalar_type();
  const bool slow = dtype == at::kBFloat16 && x.is_cpu() && !bf16_products.load(std::memory_order_relaxed);
  return slow ? at::kFloat : dtype;
}

at::Tensor scratch_of(at::IntArrayRef size, at::ScalarType dtype) {
  const int64_t bytes = c10::multiply_integers(size) * static_cast<int64_t>(c10::elementSize(dtype));
  if (!scratch.defined() || scratch.numel() < bytes) {
    scratch = at::Tensor();  // free before allocating the larger one
    scratch = at::empty({bytes}, at::kByte);
  }
  return scratch.narrow(0, 0, bytes).view(dtype).view(size);
}

namespace {
at::Generator cpu_generator() { return at::detail::getDefaultCPUGenerator(); }
}  // namespace

}  // namespace tailor

using namespace tailor;

extern "C" {

int32_t tailor_backward(const void* const* tensors, const void* const* gradients, size_t count, bool keep_graph) {
  return guarded([&] {
    torch::autograd::variable_list roots, seeds;
    for (size_t i = 0; i < count; ++i) {
      roots.push_back(tensor(tensors[i]));
      seeds.push_back(gradients[i] == nullptr ? at::Tensor() : tensor(gradients[i]));
    }
    torch::autograd::backward(roots, seeds, keep_graph, /*create_graph=*/false);
  });
}

int32_t tailor_rng_state(void** result) {
  return guarded([&] { *result = handle(cpu_generator().get_state()); });
}

int32_t tailor_set_rng_state(const void* state) {
  return guarded([&] { cpu_generator().set_state(tensor(state)); });
}

void tailor_drop_scratch() { scratch = at::Tensor(); }

bool tailor_bf16_products() { return bf16_products.load(); }

void tailor_set_bf16_products(bool use) { bf16_products.store(use); }

const char* tailor_last_error() { return last_error.c_str(); }
}
