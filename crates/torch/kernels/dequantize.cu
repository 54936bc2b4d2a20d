// From 4 bits to floats: up to four weights in one launch, one after the other in the output.
//
// Bits are those of tailor-quant: value * scale in f32 (no fused multiply-add), rounded to the weight's own type, then to
// the output's. Bound by memory: 0.5 byte read and 2 (or 4) written an element, all accesses whole and coalesced. The 16
// values stand in shared memory, where 16 words are in 16 banks: any pattern of look-ups is free of conflicts.
// `__grid_constant__` lets the parts be indexed where the launch has put them, without a copy a thread.

#define DEQUANTIZE_THREADS 256
#define DEQUANTIZE_ROUNDS 4
// Elements a block works on: 8 a thread and round.
#define DEQUANTIZE_ELEMENTS (DEQUANTIZE_THREADS * DEQUANTIZE_ROUNDS * 8)

__device__ __forceinline__ float part_scale(const TailorPart& part, u32 block) {
  if (part.scales != TAILOR_SCALES_NESTED) return part.absmax[block];
  // A division takes as long as everything else that an element needs.
  const u32 outer = part.nested_log2 != TAILOR_NO_LOG2 ? block >> part.nested_log2 : block / part.nested_block;
  return part.map[part.codes[block]] * part.absmax[outer] + part.offset;
}

template <u32 ROUNDING, bool AFFINE>
__device__ __forceinline__ float part_value(float value, float scale, float minimum) {
  float product = value * scale;
  if (AFFINE) product = product + minimum;
  if (ROUNDING == TAILOR_ROUND_BF16) return rounded<bf16>(product);
  if (ROUNDING == TAILOR_ROUND_F16) return round_f16(product);
  return product;
}

// A block that is full, of a part whose places all allow whole accesses: every read is on its way before the first use.
template <class T, u32 ROUNDING, bool AFFINE>
__device__ __forceinline__ void full_block(const TailorPart& part, u64 first, const float* values, T* out) {
  constexpr int V = 16 / sizeof(T);  // 16 bytes
  u32 packed[DEQUANTIZE_ROUNDS];
  float scale[DEQUANTIZE_ROUNDS], minimum[DEQUANTIZE_ROUNDS];
#pragma unroll
  for (int round = 0; round < DEQUANTIZE_ROUNDS; ++round) {
    const u32 at = u32(first) + (round * DEQUANTIZE_THREADS + threadIdx.x) * 8;
    const u32 block = at >> part.block_log2;
    packed[round] = *reinterpret_cast<const u32*>(part.packed + at / 2);
    scale[round] = part_scale(part, block);
    minimum[round] = AFFINE ? part.minimum[block] : 0.0f;
  }
#pragma unroll
  for (int round = 0; round < DEQUANTIZE_ROUNDS; ++round) {
    T* const to = out + first + (round * DEQUANTIZE_THREADS + threadIdx.x) * 8;
#pragma unroll
    for (int half = 0; half < 8 / V; ++half) {
      float result[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        // Byte n of the word holds elements 2n (high nibble) and 2n + 1 (low nibble).
        const int element = half * V + i;
        const u32 code = (packed[round] >> ((element / 2) * 8 + (element % 2 == 0 ? 4 : 0))) & 15u;
        result[i] = part_value<ROUNDING, AFFINE>(values[code], scale[round], minimum[round]);
      }
      store<V>(to + half * V, result);
    }
  }
}

// Any block: one element at a time.
template <class T, u32 ROUNDING, bool AFFINE>
__device__ __forceinline__ void any_block(const TailorPart& part, u64 first, const float* values, T* out) {
  const u64 end = first + DEQUANTIZE_ELEMENTS < part.elements ? first + DEQUANTIZE_ELEMENTS : part.elements;
#pragma unroll 1
  for (u64 at = first + threadIdx.x; at < end; at += DEQUANTIZE_THREADS) {
    const u32 block = u32(at >> part.block_log2);
    const u8 byte = part.packed[at / 2];
    const u32 code = at % 2 == 0 ? byte >> 4 : byte & 15u;
    const float minimum = AFFINE ? part.minimum[block] : 0.0f;
    out[at] = As<T>::of(part_value<ROUNDING, AFFINE>(values[code], part_scale(part, block), minimum));
  }
}

template <class T, u32 ROUNDING, bool AFFINE>
__device__ __forceinline__ void part_block(const TailorPart& part, const float* values, T* out) {
  const u64 first = u64(blockIdx.x - part.first_block) * DEQUANTIZE_ELEMENTS;
  // Eight elements under one scale, and a place that a whole access may begin at.
  const bool whole = part.block_log2 >= 3 && (part.begins & 7u) == 0;
  if (whole && first + DEQUANTIZE_ELEMENTS <= part.elements) {
    full_block<T, ROUNDING, AFFINE>(part, first, values, out + part.begins);
  } else {
    any_block<T, ROUNDING, AFFINE>(part, first, values, out + part.begins);
  }
}

template <class T, u32 ROUNDING>
__device__ __forceinline__ void rounding_to(const TailorPart& part, const float* values, T* out) {
  if (part.scales == TAILOR_SCALES_AFFINE) {
    part_block<T, ROUNDING, true>(part, values, out);
  } else {
    part_block<T, ROUNDING, false>(part, values, out);
  }
}

template <class T>
__device__ __forceinline__ void dequantize(const TailorParts& parts, T* out) {
  __shared__ float values[16];
  u32 which = 0;
  while (which + 1 < parts.count && blockIdx.x >= parts.part[which + 1].first_block) ++which;
  const TailorPart& part = parts.part[which];
  if (threadIdx.x < 16) values[threadIdx.x] = part.values[threadIdx.x];
  __syncthreads();
  // Rounding to bf16 twice is rounding to it once.
  if (part.rounding == TAILOR_ROUND_F16) {
    rounding_to<T, TAILOR_ROUND_F16>(part, values, out);
  } else if (part.rounding == TAILOR_ROUND_BF16 && sizeof(T) == 4) {
    rounding_to<T, TAILOR_ROUND_BF16>(part, values, out);
  } else {
    rounding_to<T, TAILOR_ROUND_NOT>(part, values, out);
  }
}

extern "C" __global__ void __launch_bounds__(256) tailor_dequantize_bf16(const __grid_constant__ TailorParts parts,
                                                                          bf16* out) {
  dequantize<bf16>(parts, out);
}
extern "C" __global__ void __launch_bounds__(256) tailor_dequantize_f32(const __grid_constant__ TailorParts parts,
                                                                         float* out) {
  dequantize<float>(parts, out);
}
