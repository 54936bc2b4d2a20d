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

// What a lane reads of its rows g and g + 8 of M tiles: where they begin, in bytes and in pieces.
template <int M>
struct Rows {
  u32 bytes[M][2], pieces[M][2];
};

// What a lane has read of one piece: 8 bytes of each row, and their scales.
template <int M>
struct Piece {
  Pack<u32, 2> packed[M][2];
  float scale[M][2];
};

// A piece that is not there any more is read as the last one, and its sum is not made.
template <int M>
__device__ __forceinline__ void read_piece(const TailorPart& part, const Rows<M>& rows, u32 piece, u32 pieces,
                                           Piece<M>& to) {
  const u32 own = piece < pieces ? piece : pieces - 1;
  const u32 in_block = part.block_log2 - 6;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      to.packed[m][half] = load_once(part.packed + (rows.bytes[m][half] + own * (PRODUCT_PIECE / 2)));
      const u32 block = (rows.pieces[m][half] + own) >> in_block;
      if (part.scales == TAILOR_SCALES_NESTED) {
        to.scale[m][half] = part.map[part.codes[block]] * part.absmax[block >> part.nested_log2] + part.offset;
      } else {
        to.scale[m][half] = part.absmax[block];
      }
    }
  }
}

// Where the table has the two numbers of one byte of a word.
__device__ __forceinline__ u32 in_table(const char* table, u32 word, int byte) {
  const u32 place = (byte == 0 ? word << 7 : word >> (byte * 8 - 7)) & 0x7f80u;
  return *reinterpret_cast<const u32*>(table + place);
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
  Rows<M> own;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Of rows that are not there the last one is read, and nothing is written.
      const u32 row = first + g + m * 16 + half * 8, there = row < rows ? row : rows - 1;
      own.bytes[m][half] = there * (in / 2) + t * 8;
      own.pieces[m][half] = there * pieces;
    }
  }

  Piece<M> ahead[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; ++i) read_piece<M>(part, own, warp + i * PRODUCT_WARPS, pieces, ahead[i]);
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
            const u32 low = ahead[i].packed[m][0].at[step / 2], high = ahead[i].packed[m][1].at[step / 2];
            const int byte = step % 2 * 2;
            const u32 a[4] = {in_table(table, low, byte), in_table(table, high, byte), in_table(table, low, byte + 1),
                              in_table(table, high, byte + 1)};
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
      read_piece<M>(part, own, piece + PRODUCT_WARPS * AHEAD, pieces, ahead[i]);
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
        const u32 of_w = m * 16 + g + (j / 2) * 8, of_x = n * 8 + t * 2 + (j & 1);
        sums[(warp * (16 * M) + of_w) * (8 * N) + of_x] = sum[m][n][j];
      }
    }
  }
  __syncthreads();
  for (u32 at = threadIdx.x; at < 16 * M * 8 * N; at += PRODUCT_THREADS) {
    // Neighbouring threads write neighbouring columns of y.
    const u32 of_w = at % (16 * M), of_x = at / (16 * M);
    if (first + of_w >= rows || of_x >= count) continue;
    float total = 0.0f;
#pragma unroll
    for (u32 from = 0; from < PRODUCT_WARPS; ++from) total += sums[(from * (16 * M) + of_w) * (8 * N) + of_x];
    bf16* const to = y + u64(of_x) * width + part.begins + first + of_w;
    // Rounded before it is added, as a layer's result is.
    *to = add != 0 ? to_bf16(to_float(*to) + rounded<bf16>(total)) : to_bf16(total);
  }
}

// Blocks that stand side by side on a multiprocessor: as many as their registers leave room for.
#define PRODUCT(NAME, N, M, AHEAD, BLOCKS)                                                                        \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS) tailor_product_##NAME(                                \
      const __grid_constant__ TailorParts parts, const bf16* x, bf16* y, u32 count, u32 in, u32 width, u32 add) { \
    product<N, M, AHEAD>(parts, x, y, count, in, width, add);                                                     \
  }
PRODUCT(8, 1, 1, 4, 3)
PRODUCT(16, 2, 2, 4, 2)
PRODUCT(32, 4, 2, 2, 1)
