// y = x·Wᵀ, or y += x·Wᵀ, for a few rows of x in bf16 and weights in 4 bits as they lie: up to four weights that take the
// same x, their outputs columns of one y.
//
// Bound by memory: each weight's bytes are read once. A block has 16·M rows of W and all of their columns; its warps share
// the columns in pieces of 64, which one scale counts for, and add up at the end. Tensor cores multiply, in bf16 with f32
// sums, so up to 8 rows of x cost what one costs. The scale comes after a piece's sum: W's values themselves are the
// code's sixteen numbers rounded to bf16, looked up two at a time by the byte that holds both. Every lane has a copy of
// that table in a bank of shared memory of its own, so no two look-ups wait for each other.
//
// Fragments of mma.m16n8k16, for lane 4g + t (PTX ISA, "Matrix Fragments for mma.m16n8k16"): A holds rows g and g + 8,
// columns 2t, 2t + 1 and 2t + 8, 2t + 9; B the same columns of x's row g; the sum rows g and g + 8 for x's rows 2t and
// 2t + 1. Which of the 64 columns goes by which number does not matter as long as A and B agree: lane t has 16 that follow
// one another, so that it reads 8 bytes of W and 32 of x.

#define PRODUCT_THREADS 256
#define PRODUCT_WARPS (PRODUCT_THREADS / 32)
#define PRODUCT_PIECE 64u

// Two numbers of the code under each byte, for each lane.
__device__ __forceinline__ void fill_table(u32* table, const float* values) {
  for (u32 byte = threadIdx.x / 32; byte < 256; byte += PRODUCT_WARPS) {
    table[byte * 32 + threadIdx.x % 32] = bf16_pair(values[byte >> 4], values[byte & 15u]);
  }
}

// The scale of the piece of a row that begins at this element.
__device__ __forceinline__ float piece_scale(const TailorPart& part, u64 element) {
  return part_scale(part, u32(element >> part.block_log2));
}

// What a warp has read of one piece: for each of M tiles, 8 bytes of row g and 8 of row g + 8, and their scales.
template <int M>
struct Piece {
  Pack<u32, 2> packed[M][2];
  float scale[M][2];
};

template <int M>
__device__ __forceinline__ void read_piece(const TailorPart& part, u32 row, u32 rows, u32 in, u32 piece, u32 pieces,
                                           Piece<M>& to) {
  const u32 t = threadIdx.x & 3u;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32 own = row + m * 16 + half * 8;
      to.packed[m][half] = {{0, 0}};
      to.scale[m][half] = 0.0f;
      if (own < rows && piece < pieces) {
        const u64 element = u64(own) * in + piece * PRODUCT_PIECE;
        to.packed[m][half] = load_once(part.packed + element / 2 + t * 8);
        to.scale[m][half] = piece_scale(part, element);
      }
    }
  }
}

// N tiles of 8 rows of x, M tiles of 16 rows of W, AHEAD pieces on their way to a warp while it works on one.
template <int N, int M, int AHEAD>
__device__ __forceinline__ void product(const TailorParts& parts, const bf16* x, bf16* y, u32 count, u32 in, u32 width,
                                        u32 add) {
  // After the table has served, the warps' sums: [warp][row of W][row of x].
  __shared__ u32 shared[8192];
  static_assert(PRODUCT_WARPS * 16 * M * 8 * N <= 8192, "the sums fit where the table was");
  u32 which = 0;
  while (which + 1 < parts.count && blockIdx.x >= parts.part[which + 1].first_block) ++which;
  const TailorPart& part = parts.part[which];
  const u32 rows = u32(part.elements / in), pieces = in / PRODUCT_PIECE;
  const u32 first = (blockIdx.x - part.first_block) * (16 * M);
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const u32 row = first + g;

  Piece<M> ahead[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; ++i) read_piece<M>(part, row, rows, in, warp + i * PRODUCT_WARPS, pieces, ahead[i]);
  fill_table(shared, part.values);
  __syncthreads();
  const char* const table = reinterpret_cast<const char*>(shared + lane);

  float sum[M][N][4] = {};
  for (u32 begin = warp; begin < pieces; begin += PRODUCT_WARPS * AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const u32 piece = begin + i * PRODUCT_WARPS;
      if (piece < pieces) {
        Pack<u32, 4> inputs[N][2];
#pragma unroll
        for (int n = 0; n < N; ++n) {
          inputs[n][0] = inputs[n][1] = {{0, 0, 0, 0}};
          if (n * 8 + g < count) {
            const bf16* const from = x + u64(n * 8 + g) * in + piece * PRODUCT_PIECE + t * 16;
            inputs[n][0] = *reinterpret_cast<const Pack<u32, 4>*>(from);
            inputs[n][1] = *reinterpret_cast<const Pack<u32, 4>*>(from + 8);
          }
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
          float of_piece[N][4] = {};
#pragma unroll
          for (int step = 0; step < 4; ++step) {
            // Bytes 2·step and 2·step + 1 of both rows.
            const u32 shift = (step & 1) * 16;
            const u32 low = ahead[i].packed[m][0].at[step / 2] >> shift, high = ahead[i].packed[m][1].at[step / 2] >> shift;
            const u32 a[4] = {
                *reinterpret_cast<const u32*>(table + ((low & 255u) << 7)),
                *reinterpret_cast<const u32*>(table + ((high & 255u) << 7)),
                *reinterpret_cast<const u32*>(table + ((low & 0xff00u) >> 1)),
                *reinterpret_cast<const u32*>(table + ((high & 0xff00u) >> 1)),
            };
#pragma unroll
            for (int n = 0; n < N; ++n) {
              mma_bf16(of_piece[n], a, inputs[n][step / 2].at[(step & 1) * 2], inputs[n][step / 2].at[(step & 1) * 2 + 1]);
            }
          }
#pragma unroll
          for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[m][n][j] += of_piece[n][j] * ahead[i].scale[m][j / 2];
          }
        }
      }
      read_piece<M>(part, row, rows, in, piece + PRODUCT_WARPS * AHEAD, pieces, ahead[i]);
    }
  }

  __syncthreads();  // the table is not needed any more
  float* const sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const u32 own = m * 16 + g + (j / 2) * 8, of_x = n * 8 + t * 2 + (j & 1);
        sums[(warp * (16 * M) + own) * (8 * N) + of_x] = sum[m][n][j];
      }
    }
  }
  __syncthreads();
  for (u32 at = threadIdx.x; at < 16 * M * 8 * N; at += PRODUCT_THREADS) {
    // Neighbouring threads write neighbouring columns of y.
    const u32 own = at % (16 * M), of_x = at / (16 * M);
    if (first + own >= rows || of_x >= count) continue;
    float total = 0.0f;
#pragma unroll
    for (u32 from = 0; from < PRODUCT_WARPS; ++from) total += sums[(from * (16 * M) + own) * (8 * N) + of_x];
    bf16* const to = y + u64(of_x) * width + part.begins + first + own;
    // Rounded before it is added, as a layer's result is.
    *to = add != 0 ? to_bf16(to_float(*to) + rounded<bf16>(total)) : to_bf16(total);
  }
}

#define PRODUCT(NAME, N, M, AHEAD)                                                                                   \
  extern "C" __global__ void __launch_bounds__(256, N > 2 ? 1 : 2) tailor_product_##NAME(                            \
      const __grid_constant__ TailorParts parts, const bf16* x, bf16* y, u32 count, u32 in, u32 width, u32 add) {    \
    product<N, M, AHEAD>(parts, x, y, count, in, width, add);                                                        \
  }
PRODUCT(8, 1, 1, 4)
PRODUCT(16, 2, 2, 4)
PRODUCT(32, 4, 2, 2)
