// What the shim's files share: errors that do not leave them, handles, and how products are made on this processor.
#pragma once
#include "shim.h"

#include <ATen/ATen.h>

#include <string>

namespace tailor {

extern thread_local std::string last_error;

// 0, or 1 with the message kept for `tailor_last_error`.
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

inline const at::Tensor& tensor(const void* handle) { return *static_cast<const at::Tensor*>(handle); }

inline void* handle(at::Tensor value) { return new at::Tensor(std::move(value)); }

// The type in which x·Wᵀ is multiplied for an x of type `dtype`: its own, or f32 where this processor has no bf16
// product. (libtorch then falls back to loops that are ten to a hundred times slower than its f32 product.)
at::ScalarType product_type(const at::Tensor& x);

// A tensor of this thread that the next call overwrites: a fresh one for each layer would page-fault every time.
at::Tensor scratch_of(at::IntArrayRef size, at::ScalarType dtype);

// y += scale · u, rounded to y's type once. Contiguous, of equal size; u in f32.
void add_scaled_(at::Tensor& y, const at::Tensor& u, double scale);

}  // namespace tailor

// Compiled for each level of x86-64's vector instructions, and the best one taken at run time.
#if defined(__x86_64__) && defined(__GNUC__)
#define TAILOR_VECTORS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define TAILOR_INLINE inline __attribute__((always_inline))
#else
#define TAILOR_VECTORS
#define TAILOR_INLINE inline
#endif
