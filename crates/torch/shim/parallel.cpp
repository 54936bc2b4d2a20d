// libtorch's threads for work that is not libtorch's.
//
// The CPU builds of libtorch use GNU OpenMP, whose pool belongs to the thread that calls it: an operator and a kernel of
// ours called one after the other on one thread find the same threads, still spinning. The entry point is looked up in the
// library that libtorch has brought with it: linking one of our own might give the process two pools.

#include "shim.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>

namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

Parallel parallel() {
  static const Parallel found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

}  // namespace

extern "C" void tailor_parallel(void (*work)(void*), void* data) {
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const Parallel run = threads > 1 ? parallel() : nullptr;
  if (run == nullptr) return work(data);
  run(work, data, static_cast<unsigned>(threads), 0);
}
