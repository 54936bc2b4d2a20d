// The gated feed-forward's product: y = act(gate)·up (GLU variants, arXiv 2002.05202). The backward pass makes act(gate)
// again, so that neither it nor anything else of the forward pass is kept but gate and up.
//
// act(gate) is rounded to the tensor's type before the product, as the reference models do.
//
// gate and up are [N, F] whose rows may lie further apart than F: columns of one product. y and what comes back are
// without gaps. A thread works on V values of one row; `parts` is F/V.

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

// Where a thread's values lie in a tensor with gaps, and in one without.
struct GatedPlace {
  u64 with_gaps, without;
};

template <int V>
__device__ __forceinline__ GatedPlace gated_place(u32 unit, u32 parts, u64 stride) {
  const u32 row = unit / parts;
  return {row * stride + u64(unit - row * parts) * V, u64(unit) * V};
}

template <class T, int V>
__device__ __forceinline__ void gated(const T* gate, const T* up, T* y, u32 units, u32 parts, u64 stride, u32 kind) {
  const u32 unit = blockIdx.x * blockDim.x + threadIdx.x;
  if (unit >= units) return;
  const GatedPlace at = gated_place<V>(unit, parts, stride);
  const Pack<T, V> gates = load<T, V>(gate + at.with_gaps), ups = load<T, V>(up + at.with_gaps);
  float result[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float value = rounded<T>(activate(to_float(gates.at[i]), kind).value);
    result[i] = value * to_float(ups.at[i]);
  }
  store<V>(y + at.without, result);
}

template <class T, int V>
__device__ __forceinline__ void gated_backward(const T* gradient, const T* gate, const T* up, T* g_gate, T* g_up,
                                               u32 units, u32 parts, u64 stride, u32 kind) {
  const u32 unit = blockIdx.x * blockDim.x + threadIdx.x;
  if (unit >= units) return;
  const GatedPlace at = gated_place<V>(unit, parts, stride);
  const Pack<T, V> gates = load<T, V>(gate + at.with_gaps), ups = load<T, V>(up + at.with_gaps);
  const Pack<T, V> gradients = load<T, V>(gradient + at.without);
  float of_gate[V], of_up[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const Activated activated = activate(to_float(gates.at[i]), kind);
    const float g = to_float(gradients.at[i]);
    of_up[i] = g * rounded<T>(activated.value);
    of_gate[i] = g * to_float(ups.at[i]) * activated.slope;
  }
  store<V>(g_gate + at.without, of_gate);
  store<V>(g_up + at.without, of_up);
}

#define GATED(NAME, T, V)                                                                                             \
  extern "C" __global__ void __launch_bounds__(256) tailor_gated_##NAME(                                              \
      const T* gate, const T* up, T* y, u32 units, u32 parts, u64 stride, u32 kind) {                                 \
    gated<T, V>(gate, up, y, units, parts, stride, kind);                                                             \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256) tailor_gated_backward_##NAME(                                     \
      const T* gradient, const T* gate, const T* up, T* g_gate, T* g_up, u32 units, u32 parts, u64 stride, u32 kind) { \
    gated_backward<T, V>(gradient, gate, up, g_gate, g_up, units, parts, stride, kind);                               \
  }
GATED(bf16, bf16, 1)
GATED(bf16_vec, bf16, 8)
GATED(f32, float, 1)
GATED(f32_vec, float, 4)
