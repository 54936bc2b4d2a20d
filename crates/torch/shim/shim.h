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

// State of the CPU's random generator as a byte tensor.
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

// ---- c10d (c10d.cpp): ranks of one job ----
// A meeting is a TCPStore: with `listener` >= 0 (a listening socket, taken over) this process serves it, else it is
// connected to at host:port. Calls wait at most `timeout_ms`.
int32_t tailor_meeting_open(const char* host, uint16_t port, int32_t listener, uint64_t timeout_ms, void** result);
int32_t tailor_meeting_set(void* meeting, const char* key, const uint8_t* data, size_t size);
// Whether the key is there; does not wait.
int32_t tailor_meeting_has(void* meeting, const char* key, bool* result);
// Waits for the key; its value as a byte tensor.
int32_t tailor_meeting_get(void* meeting, const char* key, void** result);
void tailor_meeting_close(void* meeting);

enum TailorReduce : int32_t { TAILOR_SUM = 0, TAILOR_MIN = 1 };

// Gloo's process group over the meeting; others reach this rank at `own_address`. Each call below is made by all ranks
// in the same order and works in place on a contiguous CPU tensor of the same size and type everywhere.
int32_t tailor_group_open(void* meeting, const char* own_address, int32_t rank, int32_t world, uint64_t timeout_ms,
                          void** result);
int32_t tailor_group_all_reduce(void* group, void* values, int32_t op);
int32_t tailor_group_broadcast(void* group, void* values, int32_t from);
int32_t tailor_group_barrier(void* group);
void tailor_group_close(void* group);

const char* tailor_last_error();
}
