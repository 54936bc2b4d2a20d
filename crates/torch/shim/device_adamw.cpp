// One step of AdamW in one launch.

#include "common.h"
#include "device.h"

#include "../kernels/params.h"

namespace {

using namespace tailor;

const Tensor& flat(const void* handle, at::ScalarType type, int64_t count, const char* name) {
  const Tensor& tensor = tensor_of(handle);
  TORCH_CHECK(tensor.scalar_type() == type && tensor.is_contiguous() && tensor.numel() == count, name, " is ",
              tensor.scalar_type(), " of ", tensor.numel(), " values; ", type, " of ", count, " is needed");
  return tensor;
}

TailorAdam checked(const TailorStep& step) {
  const int64_t count = tensor_of(step.values).numel();
  const auto floats = [&](const void* handle, const char* name) -> float* {
    return handle == nullptr ? nullptr : flat(handle, at::kFloat, count, name).data_ptr<float>();
  };
  const bool each = step.rates != nullptr;
  TORCH_CHECK(each == (step.corrections != nullptr) && each == (step.decays != nullptr), "factors of each value: all or none");
  TailorAdam adam{};
  adam.values = floats(step.values, "parameters");
  adam.gradient = floats(step.gradient, "gradient");
  adam.rates = floats(step.rates, "rates");
  adam.corrections = floats(step.corrections, "corrections");
  adam.decays = floats(step.decays, "decays");
  adam.count = static_cast<unsigned long long>(count);
  adam.gradient_scale = float(step.gradient_scale);
  adam.one_minus_beta1 = float(1.0 - step.beta1);
  adam.one_minus_beta2 = float(1.0 - step.beta2);
  adam.epsilon = float(step.epsilon);
  adam.rate = float(step.rate);
  adam.correction = float(step.correction);
  adam.decay = float(step.decay);
  return adam;
}

TailorMoment8 checked(const TailorMomentTensors& moment, int64_t count) {
  TailorMoment8 result{};
  result.codes = flat(moment.codes, at::kByte, count, "codes of a moment").data_ptr<uint8_t>();
  result.scales = flat(moment.scales, at::kFloat, ceil_div(count, 256), "scales of a moment").data_ptr<float>();
  result.map = flat(moment.map, at::kFloat, 256, "map of a moment").data_ptr<float>();
  result.middles = flat(moment.middles, at::kFloat, 255, "middles of a moment").data_ptr<float>();
  return result;
}

}  // namespace

extern "C" {

int32_t tailor_adamw(const TailorStep* step, const void* first, const void* second) {
  return shielded([&] {
    const Tensor& values = tensor_of(step->values);
    const int64_t count = values.numel();
    launch(values, "tailor_adamw", ceil_div(count, 256), 256, checked(*step),
           flat(first, at::kFloat, count, "first moment").data_ptr<float>(),
           flat(second, at::kFloat, count, "second moment").data_ptr<float>());
  });
}

int32_t tailor_adamw8(const TailorStep* step, const TailorMomentTensors* first, const TailorMomentTensors* second) {
  return shielded([&] {
    const Tensor& values = tensor_of(step->values);
    const int64_t count = values.numel();
    launch(values, "tailor_adamw8", ceil_div(count, 256), 256, checked(*step), checked(*first, count),
           checked(*second, count));
  });
}
}
