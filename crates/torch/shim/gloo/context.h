// Gloo's code is in libtorch_cpu.so, its headers are not in libtorch's folder. What c10d's ProcessGroupGloo.hpp needs of
// them to be read are names: c10d.cpp makes, keeps and calls none of these types, libtorch does.
#pragma once
#include <chrono>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
}  // namespace gloo
