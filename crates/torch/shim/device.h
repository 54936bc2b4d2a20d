// The C surface of what runs with kernels of our own: on a GPU, or on a host that emulates one. See shim.h for the rules.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// ---- Launching (launch.cpp) ----------------------------------------------------------------------------------------

// One launch of a kernel by its name. `arguments` are addresses of the values, as cuLaunchKernel takes them.
struct TailorLaunch {
  const char* kernel;
  uint32_t blocks, threads;
  void* const* arguments;
  uint32_t argument_count;
  int32_t device;  // index of the GPU
  void* stream;    // cudaStream_t; null on a host
};

// Returns 0, or 1 with what is wrong in `message`. Does not wait for the kernel.
typedef int32_t (*TailorLauncher)(const TailorLaunch* launch, char* message, size_t room);

// Who launches for tensors on GPUs (cuda = 1) or on the host (cuda = 0) from here on; null: nobody.
void tailor_set_launcher(int32_t cuda, TailorLauncher launcher);

// Whether kernels run for tensors where this one is.
int32_t tailor_has_kernels(const void* tensor);

// ---- Weights in 4 bits on the device (device_linear.cpp) -----------------------------------------------------------

// Tensors on one device: packed u8 [ceil(n/2)], codes u8 [blocks], map f32 [256], absmax f32, minimum f32 [blocks],
// values f32 [16]. Those that the kind of scales has not are null. The numbers are those of kernels/params.h.
struct TailorFourBit {
  const void *packed, *codes, *map, *absmax, *minimum, *values;
  int64_t out, in;
  uint32_t block, nested_block, scales, rounding;
  float offset;
};

int32_t tailor_device_weight(const TailorFourBit* parts, void** weight);
void tailor_device_weight_free(void* weight);

// The weights one below the other, [sum of out, in], of type TailorFloat.
int32_t tailor_device_dequantize(const void* const* weights, size_t count, int32_t dtype, void** result);

// LoRA of one layer: A [R, in] and B [out, R], both null where it has none.
struct TailorFactors {
  const void *a, *b;
  double scale;
};

// results[i] = x·W_iᵀ + s_i·(x·A_iᵀ)·B_iᵀ in the type of x, columns of one product. One launch dequantises all weights, once
// forward and once backward; nothing of them is saved. Gradients of A and B are summed in f32.
int32_t tailor_device_project(const void* x, const void* const* weights, const TailorFactors* factors, size_t count,
                              void** results);

// As tailor_lora, with the products in the type of x and the sums of the parameters' gradients in f32.
int32_t tailor_device_lora(const void* y, const void* x, const void* a, const void* b, double scale, void** result);

// y [N, Σout] = x·[W1; W2; ..]ᵀ, or with `add` that added to what is there, for x [N, in] in bf16 with N at most
// TAILOR_FEW_ROWS and weights as `tailor_device_is_direct` lets them through: multiplied as they lie, in one launch.
#define TAILOR_FEW_ROWS 32
int32_t tailor_step_product(const void* x, const void* const* weights, size_t count, int32_t add, void* y);
int32_t tailor_device_is_direct(const void* weight);

// ---- A step of serving (device_step.cpp) ---------------------------------------------------------------------------

// The places of N rows in one tensor i32 on the device: positions [N], slots [N], beginnings of tables [N], then tables.
struct TailorStepNumbers {
  const void* numbers;
  int64_t rows;
};

// y = norm of x [N, D] in bf16; `roots` f32 has room for N.
int32_t tailor_step_norm(const void* x, const void* weight, double epsilon, int32_t one_plus, void* y, void* roots);
// y [N, F] = act(both[.., :F])·both[.., F:].
int32_t tailor_step_gated(const void* both, int32_t activation, void* y);
// product [N, (H + 2K)·Dh]: q and k turn by their positions, k and v go to the pages [slots, K, Dh].
int32_t tailor_step_turn(void* product, const void* frequencies, const TailorStepNumbers* numbers, void* keys,
                         void* values, int64_t heads);
// out [N, H·Dh] = attention of the product's q over the pages; a window of 0 is none, and so is a cap of 0.
int32_t tailor_step_attend(const void* product, const TailorStepNumbers* numbers, const void* keys, const void* values,
                           int64_t heads, int64_t window, double scale, double softcap, void* out);
// y [N, Σout] += LoRA of x [N, in], by terms u8 [layers, N, sizeof TailorLowRankTerm] from layer `first` on; `inner` f32 has
// room for count·N·most, `most` being the largest rank.
int32_t tailor_step_low_rank(const void* x, const void* terms, int64_t first, const int64_t* outs, size_t count,
                             int64_t most, void* inner, void* y);

// ---- Layers (device_layers.cpp) ------------------------------------------------------------------------------------

// x [.., D], weight [D] of the same type; the weight gets no gradient.
int32_t tailor_device_rms_norm(const void* x, const void* weight, double epsilon, int32_t one_plus, void** result);

// act(gate)·up; activation 0 is SiLU, 1 GELU by tanh.
int32_t tailor_device_gated(const void* gate, const void* up, int32_t activation, void** result);

// x [B, H, T, Dh], cos and sin [B or 1, 1, T, Dh] → [B, H, T, Dh] whose memory is [B, T, H, Dh].
int32_t tailor_rope(const void* x, const void* cos, const void* sin, void** result);

// Flash attention over texts that lie one after the other: q [N, H, Dh], k and v [N, K, Dh] in bf16 on a GPU, `starts`
// i32 [texts + 1] there → [N, H, Dh]. A token sees those of its text, up to itself where `causal`.
int32_t tailor_attend_texts(const void* q, const void* k, const void* v, const void* starts, int64_t longest,
                            double scale, int32_t causal, void** result);

// Overwrites logits [n, V] (f32 or bf16) with the gradient of the weighted loss; labels i64 [n]; weights f32 [n], or null
// where `weight` counts for all. Gives the unweighted losses, f32 [n].
int32_t tailor_device_cross_entropy(void* logits, const void* labels, const void* weights, double weight, void** losses);

// ---- Optimizer (device_adamw.cpp) ----------------------------------------------------------------------------------

struct TailorStep {
  const void *values, *gradient;              // f32 [n]
  const void *rates, *corrections, *decays;   // f32 [n], or all null
  double gradient_scale, beta1, beta2, epsilon, rate, correction, decay;
};
// Codes u8 [n], scales f32 [ceil(n/256)], map f32 [256], middles f32 [255].
struct TailorMomentTensors {
  const void *codes, *scales, *map, *middles;
};
int32_t tailor_adamw(const TailorStep* step, const void* first, const void* second);
int32_t tailor_adamw8(const TailorStep* step, const TailorMomentTensors* first, const TailorMomentTensors* second);

// ---- Memory (device_memory.cpp) ------------------------------------------------------------------------------------

// Bytes of tensors on a GPU now and at most, and what is held of the card for them at most.
int32_t tailor_device_bytes(int32_t device, uint64_t* now, uint64_t* peak, uint64_t* reserved_peak);
int32_t tailor_reset_device_peak(int32_t device);

// A copy of x in page-locked host memory, made beside whatever the GPU does; `tailor_fetch` brings it back.
int32_t tailor_offload(const void* x, void** parked);
// Begins to bring it back, so that a later fetch does not wait.
int32_t tailor_prefetch(void* parked);
int32_t tailor_fetch(void* parked, void** result);
void tailor_parked_free(void* parked);

// A new tensor like `like` on its GPU from memory at `data`, freed by release(data).
int32_t tailor_wrap_memory(const void* like, void* data, void (*release)(void*), void** result);
}
