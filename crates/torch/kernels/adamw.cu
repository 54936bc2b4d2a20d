// AdamW (arXiv 1711.05101 algorithm 2) over one flat buffer in one launch, its moments in f32 or in 8 bits
// (arXiv 2110.02861): blocks of 256 values, each the nearest entry of a dynamic map times the block's largest magnitude.

struct Factors {
  float rate, correction, decay;
};

__device__ __forceinline__ Factors factors(const TailorAdam& adam, u64 at) {
  Factors found = {adam.rate, adam.correction, adam.decay};
  if (adam.rates != nullptr) found = {adam.rates[at], adam.corrections[at], adam.decays[at]};
  return found;
}

// The value after the step; both moments have the gradient in them already.
__device__ __forceinline__ float stepped(const TailorAdam& adam, u64 at, float value, float first, float second) {
  const Factors now = factors(adam, at);
  const float root = sqrtf(second / now.correction) + adam.epsilon;
  return value * now.decay - first / root * now.rate;
}

extern "C" __global__ void __launch_bounds__(256) tailor_adamw(TailorAdam adam, float* first, float* second) {
  const u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= adam.count) return;
  const float gradient = adam.gradient[at] * adam.gradient_scale;
  const float m = first[at] + adam.one_minus_beta1 * (gradient - first[at]);
  const float v = second[at] + adam.one_minus_beta2 * (gradient * gradient - second[at]);
  adam.values[at] = stepped(adam, at, adam.values[at], m, v);
  first[at] = m;
  second[at] = v;
}

// How many of the 255 ascending middles lie below the value.
__device__ __forceinline__ u32 nearest(const float* middles, float value) {
  u32 low = 0, high = 255;
  while (low < high) {
    const u32 middle = (low + high) / 2;
    if (middles[middle] < value) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ __forceinline__ void close_block(const TailorMoment8& moment, u64 at, bool inside, float value,
                                            float* shared) {
  const float largest = block_max(inside ? fabsf(value) : 0.0f, shared);
  // A block of zeros has no scale: anything over 1 is what it is.
  const float divisor = largest == 0.0f ? 1.0f : largest;
  if (inside) moment.codes[at] = u8(nearest(moment.middles, value / divisor));
  if (threadIdx.x == 0) moment.scales[blockIdx.x] = largest;
}

// A block of 256 threads is a block of 256 values.
extern "C" __global__ void __launch_bounds__(256) tailor_adamw8(TailorAdam adam, TailorMoment8 first,
                                                                TailorMoment8 second) {
  __shared__ float shared[32];
  const u64 at = u64(blockIdx.x) * 256 + threadIdx.x;
  const bool inside = at < adam.count;
  // Read by every thread before `close_block` writes them: its first barrier lies between.
  const float first_scale = first.scales[blockIdx.x], second_scale = second.scales[blockIdx.x];
  float m = 0.0f, v = 0.0f;
  if (inside) {
    const float gradient = adam.gradient[at] * adam.gradient_scale;
    m = first.map[first.codes[at]] * first_scale;
    v = second.map[second.codes[at]] * second_scale;
    m = m + adam.one_minus_beta1 * (gradient - m);
    v = v + adam.one_minus_beta2 * (gradient * gradient - v);
    adam.values[at] = stepped(adam, at, adam.values[at], m, v);
  }
  close_block(first, at, inside, m, shared);
  close_block(second, at, inside, v, shared);
}
