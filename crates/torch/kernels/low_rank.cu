// LoRA of a step's rows, each with an adapter of its own or none (Punica, arXiv 2310.18547 §4, in two kernels): nothing is
// gathered, nothing is padded to the largest rank. For weight p of a launch and row n, `terms[p·N + n]` says which.

#define LOW_RANK_WARPS 8u

// inner[(p·N + n)·most + r] = scale · x[n]·A[r], a warp for each r; `chunks` blocks of eight of them for each row and weight.
extern "C" __global__ void __launch_bounds__(256) tailor_low_rank_inner(const bf16* x, const TailorLowRankTerm* terms,
                                                                        float* inner, u32 rows, u32 in, u32 most,
                                                                        u32 chunks) {
  const u32 which = blockIdx.x / chunks, row = which % rows;
  const u32 r = blockIdx.x % chunks * LOW_RANK_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
  const TailorLowRankTerm term = terms[which];
  if (r >= term.rank) return;  // a whole warp
  const bf16* const a = static_cast<const bf16*>(term.a) + u64(r) * in;
  const bf16* const from = x + u64(row) * in;
  float sum = 0.0f;
#pragma unroll 4
  for (u32 at = lane * 8; at < in; at += 256) {
    float left[8], right[8];
    widen8(*reinterpret_cast<const Pack<u32, 4>*>(a + at), left);
    widen8(*reinterpret_cast<const Pack<u32, 4>*>(from + at), right);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += left[i] * right[i];
  }
  for (int other = 16; other > 0; other >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, other);
  if (lane == 0) inner[u64(which) * most + r] = sum * term.scale;
}

// y[n, begins[p] + o] += Σ_r inner[..r]·B[o, r]; a thread for each output of a row. Weight p's outputs begin at starts[p].
extern "C" __global__ void __launch_bounds__(256) tailor_low_rank_outer(const float* inner, const TailorLowRankTerm* terms,
                                                                        bf16* y,
                                                                        const __grid_constant__ TailorLowRankOutputs outputs,
                                                                        u32 rows,
                                                                        u32 most, u32 blocks) {
  const u32 row = blockIdx.x / blocks, o = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  if (o >= outputs.starts[outputs.count]) return;
  u32 which = 0;
  while (which + 1 < outputs.count && o >= outputs.starts[which + 1]) ++which;
  const TailorLowRankTerm term = terms[which * rows + row];
  if (term.rank == 0) return;
  const bf16* const b = static_cast<const bf16*>(term.b) + u64(o - outputs.starts[which]) * term.b_stride;
  const float* const h = inner + u64(which * rows + row) * most;
  float sum = 0.0f;
  for (u32 r = 0; r < term.rank; r += 8) {
    float of_b[8];
    widen8(*reinterpret_cast<const Pack<u32, 4>*>(b + r), of_b);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += r + i < term.rank ? h[r + i] * of_b[i] : 0.0f;
  }
  bf16* const to = y + u64(row) * outputs.starts[outputs.count] + o;
  *to = to_bf16(to_float(*to) + sum);
}
