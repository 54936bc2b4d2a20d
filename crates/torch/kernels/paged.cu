// A step's new tokens among the pages of their sequences (vLLM, arXiv 2309.06180 §4.3), in bf16.
//
// A page is a block of 16 tokens; keys and values are [slots, K, Dh], a slot being a token's place in its block. For row n
// of a step, `positions[n]` is the token's place in its sequence, `slots[n]` where its key and value are put, and the
// blocks of its sequence begin at `tables[n]` of `blocks`.

#define PAGE_TOKENS 16u

// q, k and v of each row lie side by side in one product [N, (H + 2K)·Dh]. q turns where it lies; k turns into its page,
// and v goes to its page. Rotary positions (RoFormer, arXiv 2104.09864 §3.4.2) in the half-split layout, cos and sin rounded
// to bf16 as the reference models do. A thread has one pair of a head.
extern "C" __global__ void __launch_bounds__(256) tailor_turn_and_keep(bf16* product, const float* frequencies,
                                                                       TailorPagedStep step, bf16* keys, bf16* values, u32 rows,
                                                                       u32 heads, u32 kv_heads, u32 half) {
  const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
  const u32 all = heads + 2 * kv_heads;
  if (at >= rows * all * half) return;
  const u32 i = at % half, head = at / half % all, row = at / half / all;
  bf16* const from = product + (u64(row) * all + head) * (2 * half) + i;
  const u64 slot = u64(step.slots[row]) * kv_heads;
  if (head >= heads + kv_heads) {
    bf16* const to = values + (slot + head - heads - kv_heads) * (2 * half) + i;
    to[0] = from[0];
    to[half] = from[half];
    return;
  }
  const float angle = float(step.positions[row]) * frequencies[i];
  const float c = rounded<bf16>(cosf(angle)), s = rounded<bf16>(sinf(angle));
  const float a = to_float(from[0]), b = to_float(from[half]);
  bf16* const to = head < heads ? from : keys + (slot + head - heads) * (2 * half) + i;
  to[0] = to_bf16(a * c - b * s);
  to[half] = to_bf16(b * c + a * s);
}

// Attention of one row's heads that share keys, up to HEADS of them a block. A key is read by Dh/8 lanes, 16 bytes each, so
// a warp has 256/Dh keys at once; each group of lanes goes over its own keys with the running softmax of arXiv
// 1805.02867, and all are put together at the end.
#define PAGED_THREADS 256u
#define PAGED_WARPS (PAGED_THREADS / 32u)
#define PAGED_HEADS 4

// A part of a softmax over values: the largest score, the sum of weights relative to it, the weighted sum of values.
struct Softened {
  float largest, sum, values[8];

  __device__ __forceinline__ void clear() {
    largest = -INFINITE;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = 0.0f;
  }

  __device__ __forceinline__ void add(float other_largest, float other_sum, const float (&other)[8]) {
    const float most = fmaxf(largest, other_largest);
    // Nothing has been seen on either side: 0 − 0 and not ∞ − ∞.
    const float own = largest == -INFINITE ? 0.0f : expf(largest - most);
    const float theirs = other_largest == -INFINITE ? 0.0f : expf(other_largest - most);
    largest = most;
    sum = sum * own + other_sum * theirs;
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = values[i] * own + other[i] * theirs;
  }
};

extern "C" __global__ void __launch_bounds__(256) tailor_attend_pages(
    const bf16* q, u64 q_stride, const bf16* keys, const bf16* values, TailorPagedStep step, bf16* out, u32 heads, u32 kv_heads,
    u32 lanes, u32 window, float scale, float softcap) {
  __shared__ float shared[PAGED_WARPS][PAGED_HEADS][2 + 256];
  const u32 share = heads / kv_heads;                                // heads that share keys
  const u32 groups = (share + PAGED_HEADS - 1) / PAGED_HEADS;        // blocks that one head of keys takes
  const u32 row = blockIdx.x / (kv_heads * groups), rest = blockIdx.x % (kv_heads * groups);
  const u32 kv_head = rest / groups, first = rest % groups * PAGED_HEADS;
  const u32 count = share - first < PAGED_HEADS ? share - first : PAGED_HEADS;
  const u32 head = kv_head * share + first;
  const u32 width = lanes * 8;  // Dh
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, of_key = lane % lanes, together = 32 / lanes;
  const int* const blocks = step.blocks + step.tables[row];
  const u32 end = u32(step.positions[row]) + 1;
  const u32 begin = window != 0 && end > window ? end - window : 0;

  float query[PAGED_HEADS][8];
  Softened part[PAGED_HEADS];
#pragma unroll
  for (int h = 0; h < PAGED_HEADS; ++h) {
    part[h].clear();
    Pack<u32, 4> words = {{0, 0, 0, 0}};
    if (u32(h) < count) words = *reinterpret_cast<const Pack<u32, 4>*>(q + row * q_stride + u64(head + h) * width + of_key * 8);
    widen8(words, query[h]);
  }
  // Every lane of a warp makes as many turns: shuffles need all of them.
  const u32 stride = PAGED_WARPS * together;
  for (u32 start = begin + warp * together; start < end; start += stride) {
    const u32 at = start + lane / lanes;
    const bool seen = at < end;
    float key[8] = {}, value[8] = {};
    if (seen) {
      const u64 slot = u64(blocks[at / PAGE_TOKENS]) * PAGE_TOKENS + at % PAGE_TOKENS;
      const u64 place = (slot * kv_heads + kv_head) * width + of_key * 8;
      widen8(*reinterpret_cast<const Pack<u32, 4>*>(keys + place), key);
      widen8(*reinterpret_cast<const Pack<u32, 4>*>(values + place), value);
    }
#pragma unroll
    for (int h = 0; h < PAGED_HEADS; ++h) {
      float score = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) score += query[h][i] * key[i];
      for (u32 other = lanes / 2; other > 0; other >>= 1) score += __shfl_xor_sync(0xffffffffu, score, other);
      score *= scale;
      if (softcap > 0.0f) score = tanhf(score / softcap) * softcap;
      if (seen) part[h].add(score, 1.0f, value);
    }
  }
  // The groups of lanes of a warp.
#pragma unroll
  for (int h = 0; h < PAGED_HEADS; ++h) {
    for (u32 other = lanes; other < 32; other <<= 1) {
      const float largest = __shfl_xor_sync(0xffffffffu, part[h].largest, other);
      const float sum = __shfl_xor_sync(0xffffffffu, part[h].sum, other);
      float theirs[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) theirs[i] = __shfl_xor_sync(0xffffffffu, part[h].values[i], other);
      part[h].add(largest, sum, theirs);
    }
    if (lane < lanes) {
      float* const own = shared[warp][h];
      if (lane == 0) {
        own[0] = part[h].largest;
        own[1] = part[h].sum;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) own[2 + of_key * 8 + i] = part[h].values[i];
    }
  }
  __syncthreads();
  for (u32 at = threadIdx.x; at < count * width; at += PAGED_THREADS) {
    const u32 h = at / width, i = at % width;
    float largest = -INFINITE, sum = 0.0f, total = 0.0f;
    for (u32 from = 0; from < PAGED_WARPS; ++from) largest = fmaxf(largest, shared[from][h][0]);
    for (u32 from = 0; from < PAGED_WARPS; ++from) {
      const float factor = shared[from][h][0] == -INFINITE ? 0.0f : expf(shared[from][h][0] - largest);
      sum += shared[from][h][1] * factor;
      total += shared[from][h][2 + i] * factor;
    }
    out[(u64(row) * heads + head + h) * width + i] = to_bf16(total / sum);
  }
}
