// What the shim's files share: the guard against exceptions, handles, and launching.
#pragma once
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <array>
#include <optional>
#include <string>

namespace tailor {

using at::Tensor;

// Of the calling thread; `tailor_last_error` reads it.
void set_last_error(std::string message);

// Runs `body`; 0, or 1 where it threw.
template <typename F>
int32_t shielded(F&& body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    set_last_error(error.what_without_backtrace());
  } catch (const std::exception& error) {
    set_last_error(error.what());
  } catch (...) {
    set_last_error("unknown C++ exception");
  }
  return 1;
}

inline const Tensor& tensor_of(const void* handle) { return *static_cast<const Tensor*>(handle); }
inline void* new_handle(Tensor value) { return new Tensor(std::move(value)); }

// The data of a tensor that may be absent.
template <class T>
T* data_or_null(const void* handle) {
  return handle == nullptr ? nullptr : static_cast<T*>(tensor_of(handle).data_ptr());
}

bool has_kernels(const Tensor& tensor);

// The random generator of the current GPU; none where no GPU is in use.
std::optional<at::Generator> gpu_generator();

void launch_erased(const Tensor& on, const char* kernel, int64_t blocks, uint32_t threads, void* const* arguments,
                   uint32_t count);

// Launches a kernel on the device of `on`, on its current stream. The arguments' types must be the kernel's own.
template <class... A>
void launch(const Tensor& on, const std::string& kernel, int64_t blocks, uint32_t threads, A... arguments) {
  std::array<void*, sizeof...(A)> addresses = {static_cast<void*>(&arguments)...};
  launch_erased(on, kernel.c_str(), blocks, threads, addresses.data(), sizeof...(A));
}

inline int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

inline bool aligned16(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0; }

// The ending of the kernels' names for this type: `bf16` or `f32`.
inline std::string type_name(const Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16,
              "kernels compute in float32 or bfloat16, not ", tensor.scalar_type());
  return tensor.scalar_type() == at::kFloat ? "f32" : "bf16";
}

// Values that one access of 16 bytes takes.
inline int64_t vector_width(const Tensor& tensor) { return tensor.scalar_type() == at::kFloat ? 4 : 8; }

}  // namespace tailor
