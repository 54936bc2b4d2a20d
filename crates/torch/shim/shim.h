// The C surface of the shim. Tensor handles are `at::Tensor*`, as in tch.
//
// Every function returns 0, or 1 with the message in `tailor_last_error` (of the calling thread): no C++ exception
// leaves these files. The shim holds no policy and keeps nothing but one scratch buffer a thread, the pool of blocks, and
// which tape a thread uses.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// Element types of dequantised weights.
enum TailorFloat : int32_t { TAILOR_F32 = 0, TAILOR_BF16 = 1 };

// A term of a sum of bf16: x [rows, width], whose rows lie `stride` apart, by a 4-bit weight, or by a dense one [out, width], and
// back [width, out], row by row in bf16.
struct TailorTerm {
  const void* packed;
  const void* dense;
  const void* x;
  int64_t stride, width;
};

// y [rows, out] in bf16, or what is added to it before it is rounded.
struct TailorSum {
  const TailorTerm* terms;
  size_t count;
  int64_t out;
  bool add;
  void* y;
};

// What the shim needs of a 4-bit weight. The functions are Rust's; `self` is shared and thread-safe.
struct TailorWeightOps {
  // Writes elements first to last (excluded) of type `dtype` to `data`; `first` is a multiple of `task`. Returns 0, or 1
  // when it could not. Called from several threads at once.
  int32_t (*dequantize)(const void* self, void* data, int32_t dtype, int64_t first, int64_t last);
  // How many elements one call takes at a time.
  int64_t (*task)(const void* self);
  // Whether there are products of 16-bit integers with the packed weight, x·Wᵀ or (`back`) x·W, that are faster here than
  // dequantising it and a product in f32, and far more exact than one in bf16.
  bool (*multiplies)(const void* self, bool back);
  // Makes one: x [rows, in] → y [rows, out], or back, row by row. On all threads. Returns 0, or 1 when it could not.
  int32_t (*multiply)(const void* self, const float* x, int64_t rows, bool back, float* y);
  // Whether sums of bf16 with the packed weight are faster here than dequantising it and a product.
  bool (*has_sums)(const void* self);
  // Makes some, all with x·Wᵀ or (`back`) with x·W. On all threads. Returns 0, or 1 when it could not.
  int32_t (*sums)(const TailorSum* sums, size_t count, int64_t rows, bool back);
  void (*retain)(const void* self);
  void (*release)(const void* self);
};

// One projection of an input. `packed` is a 4-bit weight, or null and `dense` a tensor [out, in] that is not trained.
// `bias` [out] may be null, and A [R, in] with B [out, R] too.
struct TailorProjection {
  const void* packed;
  const void* dense;
  int64_t out;
  const void* bias;
  const void* a;
  const void* b;
  double scale;
};

// results[i] = x·W_iᵀ + b_i + s_i·(x·A_iᵀ)·B_iᵀ in the type of x. Weights are not saved for backward but rebuilt there.
int32_t tailor_project(const void* x, const TailorProjection* projections, size_t count, const TailorWeightOps* ops,
                       int64_t in, void** results);

// What tailor_project and tailor_device_project give on this thread from now on has no values but zeros: only the backward
// pass is wanted, which needs none of them. While a tape is put on they have values, and are not put there.
void tailor_want_values(int32_t wanted);
int32_t tailor_values_wanted();

// y + scale · (x·Aᵀ)·Bᵀ in the type of A and B, rounded to the type of y. Saves x, x·Aᵀ and the parameters. `taped`: the
// sum and x·Aᵀ go by the tape, and values that are not wanted are zeros.
int32_t tailor_lora(const void* y, const void* x, const void* a, const void* b, double scale, bool taped, void** result);

// x/√(mean x² + eps) · w over the last dimension, or · (1 + w). No gradient for w.
int32_t tailor_rms_norm(const void* x, const void* weight, double eps, bool one_plus, void** result);

// x [B, H, T, Dh] turned by angles whose cosines and sines are [B or 1, 1, T, Dh]. No gradient for these.
int32_t tailor_rotate(const void* x, const void* cosine, const void* sine, void** result);

// act(gate)·up with SiLU, or GELU by its tanh approximation.
int32_t tailor_gated(const void* gate, const void* up, bool gelu, void** result);

// softmax(q·kᵀ·scale + mask)·v. `mask` may be null; `grouped`: several query heads share one of k and v.
int32_t tailor_attend(const void* q, const void* k, const void* v, const void* mask, bool causal, double scale,
                      bool grouped, void** result);

// The summed cross-entropy of `labels` [n] under the logits states·headᵀ, and the gradient [n, D] at the states of that
// sum weighted by `weights` [n], or by `weight` where these are null. No history.
int32_t tailor_cross_entropy(const void* states, const void* head, const void* labels, const void* weights,
                             double weight, double* loss, void** gradient);

// Whether bf16 is multiplied in bf16, which is right where the processor can do so: the default. Otherwise products of
// bf16 tensors are made in f32 and rounded.
bool tailor_bf16_products();
void tailor_set_bf16_products(bool use);

// ---- Tapes (tape.cpp) ----
// From tailor_tape_enter to tailor_tape_leave what tailor_project, tailor_device_project, tailor_attend and
// tailor_attend_texts make on this thread, the values and what is saved for the backward pass, is put on the tape; or, with
// `replay`, taken from it in the same order instead of made. A thread uses one tape at a time.
int32_t tailor_tape_new(void** tape);
void tailor_tape_free(void* tape);
int32_t tailor_tape_enter(void* tape, bool replay);
void tailor_tape_leave();
bool tailor_tape_in_use();
// Tensors that are on it.
size_t tailor_tape_length(const void* tape);

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

// Calls `work(data)` on libtorch's threads, the calling one among them, and returns when all calls have returned.
void tailor_parallel(void (*work)(void*), void* data);
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
