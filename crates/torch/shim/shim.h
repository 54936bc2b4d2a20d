// The C surface of the shim. Tensor handles are `at::Tensor*`, as in tch.
//
// Every function returns 0, or 1 with the message in `tailor_last_error` (of the calling thread): no C++ exception
// leaves these files. The shim holds no policy and keeps nothing but one scratch buffer a thread and the pool of blocks.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// Element types of dequantised weights.
enum TailorFloat : int32_t { TAILOR_F32 = 0, TAILOR_BF16 = 1 };

// What the shim needs of a 4-bit weight. The functions are Rust's; `self` is shared and thread-safe.
struct TailorWeightOps {
  // Writes out·in elements of type `dtype` to `data`. Returns 0, or 1 when it could not.
  int32_t (*dequantize)(const void* self, void* data, int32_t dtype);
  void (*retain)(const void* self);
  void (*release)(const void* self);
};

// y = x·Wᵀ + bias with W [out, in] dequantised into scratch, in the type of x; not saved for backward, which
// dequantises again. `bias` may be null.
int32_t tailor_quant_linear(const void* x, const void* bias, const void* weight, const TailorWeightOps* ops,
                            int64_t out, int64_t in, void** result);

// y + scale · (x·Aᵀ)·Bᵀ in the type of A and B, rounded to the type of y. Saves x, x·Aᵀ and the parameters.
int32_t tailor_lora(const void* y, const void* x, const void* a, const void* b, double scale, void** result);

// Runs the backward pass from `tensors` with the given gradients, adding to the leaves' gradients.
int32_t tailor_backward(const void* const* tensors, const void* const* gradients, size_t count, bool keep_graph);

// State of the CPU's random generator as a byte tensor; where kernels run on a GPU, the state of its generator after it.
int32_t tailor_rng_state(void** result);
int32_t tailor_set_rng_state(const void* state);

// Drops this thread's scratch buffer.
void tailor_drop_scratch();

// From here on large CPU tensors come from the pool (pool.cpp). May be called any number of times.
void tailor_use_pool();
// Gives the blocks that wait in the pool back to the kernel, and forgets the peak.
void tailor_drop_pool();
// Bytes of large tensors now, and at their highest since the start or the last `tailor_drop_pool`.
void tailor_pool_bytes(uint64_t* lent, uint64_t* peak);

const char* tailor_last_error();
}
