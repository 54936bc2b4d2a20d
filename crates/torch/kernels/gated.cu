// The gated feed-forward's product: y = act(gate)·up (GLU variants, arXiv 2002.05202). The backward pass makes act(gate)
// again, so that neither it nor anything else of the forward pass is kept but gate and up.
//
// act(gate) is rounded to the tensor's type before the product, as the reference models do.

#define ACTIVATION_SILU 0u
#define ACTIVATION_GELU_TANH 1u

struct Activated {
  float value, slope;
};

__device__ __forceinline__ Activated activate(float x, u32 kind) {
  Activated out;
  if (kind == ACTIVATION_SILU) {
    const float sigmoid = 1.0f / (1.0f + expf(-x));
    out.value = x * sigmoid;
    out.slope = sigmoid * (1.0f + x * (1.0f - sigmoid));
  } else {
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    const float t = tanhf(inner);
    out.value = 0.5f * x * (1.0f + t);
    out.slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608028654f * (1.0f + 0.134145f * x * x);
  }
  return out;
}

template <class T, int V>
__device__ __forceinline__ void gated(const T* gate, const T* up, T* y, u64 count, u32 kind) {
  const u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (at >= count) return;
  const Pack<T, V> gates = load<T, V>(gate + at), ups = load<T, V>(up + at);
  float result[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float value = rounded<T>(activate(to_float(gates.at[i]), kind).value);
    result[i] = value * to_float(ups.at[i]);
  }
  store<V>(y + at, result);
}

template <class T, int V>
__device__ __forceinline__ void gated_backward(const T* gradient, const T* gate, const T* up, T* g_gate, T* g_up,
                                               u64 count, u32 kind) {
  const u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (at >= count) return;
  const Pack<T, V> gradients = load<T, V>(gradient + at), gates = load<T, V>(gate + at), ups = load<T, V>(up + at);
  float of_gate[V], of_up[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const Activated activated = activate(to_float(gates.at[i]), kind);
    const float g = to_float(gradients.at[i]);
    of_up[i] = g * rounded<T>(activated.value);
    of_gate[i] = g * to_float(ups.at[i]) * activated.slope;
  }
  store<V>(g_gate + at, of_gate);
  store<V>(g_up + at, of_up);
}

#define GATED(NAME, T, V)                                                                                            \
  extern "C" __global__ void __launch_bounds__(256) tailor_gated_##NAME(const T* gate, const T* up, T* y, u64 count, \
                                                                        u32 kind) {                                  \
    gated<T, V>(gate, up, y, count, kind);                                                                           \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(256) tailor_gated_backward_##NAME(                                    \
      const T* gradient, const T* gate, const T* up, T* g_gate, T* g_up, u64 count, u32 kind) {                      \
    gated_backward<T, V>(gradient, gate, up, g_gate, g_up, count, kind);                                             \
  }
GATED(bf16, bf16, 1)
GATED(bf16_vec, bf16, 8)
GATED(f32, float, 1)
GATED(f32_vec, float, 4)
