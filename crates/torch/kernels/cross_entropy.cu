// Softmax cross-entropy of one row of logits a block, and its gradient in the logits' own place.
//
// loss = log Σ exp(x) − x[label]; the row becomes (softmax(x) − onehot(label))·weight. A row whose label is −100 has no
// loss and no gradient. One pass reads (largest and sum together, arXiv 1805.02867), one reads and writes. A label
// outside the vocabulary makes the loss NaN: it must be seen, and must not read beyond the row.

template <class T>
__device__ __forceinline__ void cross_entropy(T* logits, const i64* labels, const float* weights, float weight,
                                              float* losses, u32 vocabulary) {
  __shared__ float shared[32];
  T* row = logits + u64(blockIdx.x) * vocabulary;
  const i64 label = labels[blockIdx.x];
  if (label == -100) {
    for (u32 at = threadIdx.x; at < vocabulary; at += blockDim.x) row[at] = As<T>::of(0.0f);
    if (threadIdx.x == 0) losses[blockIdx.x] = 0.0f;
    return;
  }
  float largest = -INFINITE, sum = 0.0f;
  for (u32 at = threadIdx.x; at < vocabulary; at += blockDim.x) {
    const float x = to_float(row[at]);
    if (x > largest) {
      sum = sum * expf(largest - x) + 1.0f;
      largest = x;
    } else {
      sum += expf(x - largest);
    }
  }
  const float most = block_max(largest, shared);
  // A thread without any logit has exp(−∞)·0.
  const float normaliser = most + logf(block_sum(largest == -INFINITE ? 0.0f : sum * expf(largest - most), shared));
  const bool known = label >= 0 && label < i64(vocabulary);
  if (threadIdx.x == 0) losses[blockIdx.x] = known ? normaliser - to_float(row[known ? label : 0]) : NOT_A_NUMBER;
  __syncthreads();  // the label's logit is read before it is overwritten
  const float factor = weights != nullptr ? weights[blockIdx.x] : weight;
  for (u32 at = threadIdx.x; at < vocabulary; at += blockDim.x) {
    const float probability = expf(to_float(row[at]) - normaliser);
    row[at] = As<T>::of((probability - (i64(at) == label ? 1.0f : 0.0f)) * factor);
  }
}

extern "C" __global__ void __launch_bounds__(1024) tailor_cross_entropy_bf16(bf16* logits, const i64* labels,
                                                                             const float* weights, float weight,
                                                                             float* losses, u32 vocabulary) {
  cross_entropy<bf16>(logits, labels, weights, weight, losses, vocabulary);
}
extern "C" __global__ void __launch_bounds__(1024) tailor_cross_entropy_f32(float* logits, const i64* labels,
                                                                            const float* weights, float weight,
                                                                            float* losses, u32 vocabulary) {
  cross_entropy<float>(logits, labels, weights, weight, losses, vocabulary);
}
