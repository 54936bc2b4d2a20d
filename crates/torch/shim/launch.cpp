// Who launches kernels, and on which stream.

#include "common.h"
#include "device.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <atomic>
#include <limits>

namespace {

std::atomic<TailorLauncher> launchers[2] = {nullptr, nullptr};

TailorLauncher launcher_for(const at::Tensor& tensor) {
  if (!tensor.is_cuda() && !tensor.is_cpu()) return nullptr;
  return launchers[tensor.is_cuda() ? 1 : 0].load(std::memory_order_acquire);
}

}  // namespace

namespace tailor {

bool has_kernels(const Tensor& tensor) { return launcher_for(tensor) != nullptr; }

std::optional<at::Generator> gpu_generator() {
  if (launchers[1].load(std::memory_order_acquire) == nullptr) return std::nullopt;
  const c10::Device device = c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getDevice();
  return at::globalContext().defaultGenerator(device);
}

void launch_erased(const Tensor& on, const char* kernel, int64_t blocks, uint32_t threads, void* const* arguments,
                   uint32_t count) {
  if (blocks == 0) return;  // nothing to work on
  const TailorLauncher launcher = launcher_for(on);
  TORCH_CHECK(launcher != nullptr, "no kernels for tensors on ", on.device());
  TORCH_CHECK(blocks > 0 && blocks <= std::numeric_limits<int32_t>::max(), kernel, ": ", blocks,
              " blocks; the limit is 2147483647: use fewer tokens at once");
  const c10::DeviceGuard guard(on.device());
  TailorLaunch launch{kernel, static_cast<uint32_t>(blocks), threads, arguments, count, 0, nullptr};
  if (on.is_cuda()) {
    const c10::impl::VirtualGuardImpl device(c10::DeviceType::CUDA);
    launch.device = on.get_device();
    launch.stream = device.getStream(on.device()).native_handle();
  }
  char message[512] = {0};
  TORCH_CHECK(launcher(&launch, message, sizeof(message)) == 0, "CUDA kernel ", kernel, ": ", message);
}

}  // namespace tailor

extern "C" {

void tailor_set_launcher(int32_t cuda, TailorLauncher launcher) {
  launchers[cuda != 0 ? 1 : 0].store(launcher, std::memory_order_release);
}

int32_t tailor_has_kernels(const void* tensor) { return tailor::has_kernels(tailor::tensor_of(tensor)) ? 1 : 0; }
}
