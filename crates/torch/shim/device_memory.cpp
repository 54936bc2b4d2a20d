// Memory of a GPU: what is taken, and tensors that wait on the host for their turn.

#include "common.h"
#include "device.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace {

using namespace tailor;

c10::DeviceAllocator& allocator() {
  auto* found = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(c10::DeviceType::CUDA));
  TORCH_CHECK(found != nullptr, "no allocator for GPUs: libtorch_cuda is not loaded");
  return *found;
}

// Runs `body` with the copying stream of the device as the current one.
template <class F>
void on_copy_stream(c10::Device device, const c10::Stream& copies, F&& body) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  const c10::Stream before = guard.exchangeStream(copies);
  try {
    body();
  } catch (...) {
    guard.exchangeStream(before);
    throw;
  }
  guard.exchangeStream(before);
}

// One stream a device and thread for both directions: they follow each other in the order of the pass.
c10::Stream copy_stream(c10::Device device) {
  thread_local std::optional<c10::Stream> stream;
  if (!stream || stream->device() != device) {
    stream = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device, /*isHighPriority=*/false);
  }
  return *stream;
}

// A tensor of a GPU in page-locked memory. Without a GPU it is a plain copy.
struct Parked {
  c10::Device device;
  Tensor host, back;
  std::optional<c10::Event> left, returned;

  explicit Parked(const Tensor& x) : device(x.device()) {
    if (!x.is_cuda()) {
      host = x.detach().clone();
      return;
    }
    const c10::DeviceGuard guard(device);
    const c10::impl::VirtualGuardImpl backend(device.type());
    const c10::Stream computing = backend.getStream(device), copies = copy_stream(device);
    host = at::empty(x.sizes(), x.options().device(at::kCPU).pinned_memory(true));
    const Tensor source = x.detach().contiguous();
    c10::Event made(device.type());
    made.record(computing);
    made.block(copies);  // not before it is made
    on_copy_stream(device, copies, [&] { host.copy_(source, /*non_blocking=*/true); });
    // Its memory goes to nobody else before the copy has read it.
    backend.recordDataPtrOnStream(source.storage().data_ptr(), copies);
    left.emplace(device.type());
    left->record(copies);
  }

  void prefetch() {
    if (back.defined()) return;
    if (device.is_cpu()) {
      back = host;
      return;
    }
    const c10::DeviceGuard guard(device);
    const c10::Stream copies = copy_stream(device);
    left->block(copies);
    on_copy_stream(device, copies, [&] {
      back = at::empty(host.sizes(), host.options().device(device).pinned_memory(false));
      back.copy_(host, /*non_blocking=*/true);
    });
    returned.emplace(device.type());
    returned->record(copies);
  }

  Tensor fetch() {
    prefetch();
    if (!device.is_cpu()) {
      const c10::impl::VirtualGuardImpl backend(device.type());
      const c10::Stream computing = backend.getStream(device);
      returned->block(computing);
      backend.recordDataPtrOnStream(back.storage().data_ptr(), computing);
    }
    return back;
  }
};

}  // namespace

extern "C" {

int32_t tailor_device_bytes(int32_t device, uint64_t* now, uint64_t* peak, uint64_t* reserved_peak) {
  return shielded([&] {
    const auto stats = allocator().getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *now = static_cast<uint64_t>(stats.allocated_bytes[all].current);
    *peak = static_cast<uint64_t>(stats.allocated_bytes[all].peak);
    *reserved_peak = static_cast<uint64_t>(stats.reserved_bytes[all].peak);
  });
}

int32_t tailor_reset_device_peak(int32_t device) {
  return shielded([&] { allocator().resetPeakStats(static_cast<c10::DeviceIndex>(device)); });
}

int32_t tailor_offload(const void* x, void** parked) {
  return shielded([&] { *parked = new Parked(tensor_of(x)); });
}

int32_t tailor_prefetch(void* parked) {
  return shielded([&] { static_cast<Parked*>(parked)->prefetch(); });
}

int32_t tailor_fetch(void* parked, void** result) {
  return shielded([&] { *result = new_handle(static_cast<Parked*>(parked)->fetch()); });
}

void tailor_parked_free(void* parked) { delete static_cast<Parked*>(parked); }

int32_t tailor_wrap_memory(const void* like, void* data, void (*release)(void*), void** result) {
  return shielded([&] {
    const Tensor& shape = tensor_of(like);
    *result = new_handle(at::from_blob(data, shape.sizes(), release, shape.options(), shape.device()));
  });
}
}
