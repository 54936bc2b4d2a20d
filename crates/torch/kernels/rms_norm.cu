// Root mean square norm (arXiv 1910.07467), a row of D values a block: y = x·r·w with r = 1/√(mean(x²) + ε).
//
// All sums in f32. With `one_plus` (Gemma) the scale is 1 + w and rounding comes last; without, x·r is rounded to the
// tensor's type before the weight, as the reference models do.

template <class T, int V>
__device__ __forceinline__ void rms_norm(const T* x, const T* weight, T* y, float* r, u32 width, float epsilon,
                                         u32 one_plus) {
  __shared__ float shared[32];
  const T* row = x + u64(blockIdx.x) * width;
  T* out = y + u64(blockIdx.x) * width;
  float squares = 0.0f;
  for (u32 at = threadIdx.x * V; at < width; at += blockDim.x * V) {
    const Pack<T, V> values = load<T, V>(row + at);
#pragma unroll
    for (int i = 0; i < V; ++i) squares += to_float(values.at[i]) * to_float(values.at[i]);
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, shared) / float(width) + epsilon);
  if (threadIdx.x == 0) r[blockIdx.x] = scale;
  for (u32 at = threadIdx.x * V; at < width; at += blockDim.x * V) {
    const Pack<T, V> values = load<T, V>(row + at);
    const Pack<T, V> weights = load<T, V>(weight + at);
    float result[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float normed = to_float(values.at[i]) * scale, w = to_float(weights.at[i]);
      result[i] = one_plus ? normed * (w + 1.0f) : rounded<T>(normed) * w;
    }
    store<V>(out + at, result);
  }
}

// With n = x·r and g' = g·w: gx = r·(g' − n·mean(g'·n)).
template <class T, int V>
__device__ __forceinline__ void rms_norm_backward(const T* gradient, const T* x, const T* weight, const float* r, T* gx,
                                                  u32 width, u32 one_plus) {
  __shared__ float shared[32];
  const u64 start = u64(blockIdx.x) * width;
  const float scale = r[blockIdx.x], shift = one_plus ? 1.0f : 0.0f;
  float products = 0.0f;
  for (u32 at = threadIdx.x * V; at < width; at += blockDim.x * V) {
    const Pack<T, V> values = load<T, V>(x + start + at), weights = load<T, V>(weight + at);
    const Pack<T, V> gradients = load<T, V>(gradient + start + at);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      products += to_float(gradients.at[i]) * (to_float(weights.at[i]) + shift) * (to_float(values.at[i]) * scale);
    }
  }
  const float mean = block_sum(products, shared) / float(width);
  for (u32 at = threadIdx.x * V; at < width; at += blockDim.x * V) {
    const Pack<T, V> values = load<T, V>(x + start + at), weights = load<T, V>(weight + at);
    const Pack<T, V> gradients = load<T, V>(gradient + start + at);
    float result[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float inner = to_float(gradients.at[i]) * (to_float(weights.at[i]) + shift);
      result[i] = scale * (inner - to_float(values.at[i]) * scale * mean);
    }
    store<V>(gx + start + at, result);
  }
}

#define RMS_NORM(NAME, T, V)                                                                                        \
  extern "C" __global__ void __launch_bounds__(256) tailor_rms_norm_##NAME(                                         \
      const T* x, const T* weight, T* y, float* r, u32 width, float epsilon, u32 one_plus) {                        \
    rms_norm<T, V>(x, weight, y, r, width, epsilon, one_plus);                                                      \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(256) tailor_rms_norm_backward_##NAME(                                \
      const T* gradient, const T* x, const T* weight, const float* r, T* gx, u32 width, u32 one_plus) {             \
    rms_norm_backward<T, V>(gradient, x, weight, r, gx, width, one_plus);                                           \
  }
RMS_NORM(bf16, bf16, 1)
RMS_NORM(bf16_vec, bf16, 8)
RMS_NORM(f32, float, 1)
RMS_NORM(f32_vec, float, 4)
