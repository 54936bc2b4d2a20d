// libtorch's own c10d: a TCPStore where ranks meet, and Gloo's process group between them.
#include "support.h"

#include <ATen/ATen.h>

#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <mutex>
#include <string>
#include <vector>

namespace {

using std::chrono::milliseconds;
using tailor::guarded;

struct Meeting {
  c10::intrusive_ptr<c10d::TCPStore> store;
};

struct Group {
  // The store's server must outlive the group's making, and its client what is read of it later.
  c10::intrusive_ptr<c10d::TCPStore> store;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
};

Meeting& meeting(void* handle) { return *static_cast<Meeting*>(handle); }
Group& group(void* handle) { return *static_cast<Group*>(handle); }
at::Tensor& tensor(void* handle) { return *static_cast<at::Tensor*>(handle); }

// Starts a collective and waits for it. c10d notes the first collective of every group in a map that the whole process
// shares (FlightRecorder's all_pg_status_), before it takes that map's lock: two groups of one process that began at the
// same moment broke it. So one starts after the other; the waiting is each group's own.
template <typename Start>
void collective(Start start) {
  static std::mutex starting;
  c10::intrusive_ptr<c10d::Work> work;
  {
    const std::lock_guard<std::mutex> guard(starting);
    work = start();
  }
  work->wait();
}

}  // namespace

extern "C" {

int32_t tailor_meeting_open(const char* host, uint16_t port, int32_t listener, uint64_t timeout_ms, void** result) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = listener >= 0;
    if (listener >= 0) options.masterListenFd = listener;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    *result = new Meeting{c10::make_intrusive<c10d::TCPStore>(std::string(host), options)};
  });
}

int32_t tailor_meeting_set(void* handle, const char* key, const uint8_t* data, size_t size) {
  return guarded([&] { meeting(handle).store->set(key, std::vector<uint8_t>(data, data + size)); });
}

int32_t tailor_meeting_has(void* handle, const char* key, bool* result) {
  return guarded([&] { *result = meeting(handle).store->check({std::string(key)}); });
}

int32_t tailor_meeting_get(void* handle, const char* key, void** result) {
  return guarded([&] {
    const std::vector<uint8_t> bytes = meeting(handle).store->get(key);
    auto copy = at::empty({static_cast<int64_t>(bytes.size())}, at::kByte);
    std::copy(bytes.begin(), bytes.end(), copy.data_ptr<uint8_t>());
    *result = new at::Tensor(std::move(copy));
  });
}

void tailor_meeting_close(void* handle) { delete static_cast<Meeting*>(handle); }

int32_t tailor_group_open(void* handle, const char* own_address, int32_t rank, int32_t world, uint64_t timeout_ms,
                          void** result) {
  return guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
    options->threads = 1;  // one collective at a time
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(own_address));
    auto store = meeting(handle).store;
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, world, options);
    *result = new Group{std::move(store), std::move(gloo)};
  });
}

int32_t tailor_group_all_reduce(void* handle, void* values, int32_t op) {
  return guarded([&] {
    std::vector<at::Tensor> tensors = {tensor(values)};
    c10d::AllreduceOptions options;
    options.reduceOp = op == TAILOR_MIN ? c10d::ReduceOp::MIN : c10d::ReduceOp::SUM;
    collective([&] { return group(handle).gloo->allreduce(tensors, options); });
  });
}

int32_t tailor_group_broadcast(void* handle, void* values, int32_t from) {
  return guarded([&] {
    std::vector<at::Tensor> tensors = {tensor(values)};
    c10d::BroadcastOptions options;
    options.rootRank = from;
    collective([&] { return group(handle).gloo->broadcast(tensors, options); });
  });
}

int32_t tailor_group_barrier(void* handle) {
  return guarded([&] { collective([&] { return group(handle).gloo->barrier(); }); });
}

void tailor_group_close(void* handle) {
  guarded([&] { delete static_cast<Group*>(handle); });
}
}
