// What a launch takes by value, seen alike by the kernels (NVRTC, or the host's compiler) and by the shim that launches
// them. Plain types of fixed size only; pointers are to the device's memory.
#pragma once

// Weights that one launch dequantises: q, k and v, or gate and up.
#define TAILOR_MAX_PARTS 4

// How a block's scale is kept.
#define TAILOR_SCALES_SINGLE 0u  // absmax[block]
#define TAILOR_SCALES_NESTED 1u  // map[codes[block]] * absmax[block / nested_block] + offset
#define TAILOR_SCALES_AFFINE 2u  // value * absmax[block] + minimum[block]

#define TAILOR_NO_LOG2 32u

// What values are rounded to before they are rounded to the output's type, as bitsandbytes does.
#define TAILOR_ROUND_NOT 0u
#define TAILOR_ROUND_BF16 1u
#define TAILOR_ROUND_F16 2u

// One weight in 4 bits.
struct TailorPart {
  const unsigned char* packed;   // [ceil(elements / 2)], first number in the high nibble
  const unsigned char* codes;    // [blocks], nested scales only
  const float* map;              // [256], nested scales only
  const float* absmax;           // [blocks], or [ceil(blocks / nested_block)]
  const float* minimum;          // [blocks], affine scales only
  const float* values;           // [16]
  unsigned long long elements;
  unsigned long long begins;     // place of its first element in the output; of a product, its first column there
  unsigned int first_block;      // of the launch's blocks, the first that works on it
  unsigned int block_log2;       // elements under one scale, as a power of two
  unsigned int nested_block;
  unsigned int nested_log2;      // of nested_block; TAILOR_NO_LOG2 where it is no power of two
  unsigned int scales;
  unsigned int rounding;
  float offset;
};

struct TailorParts {
  TailorPart part[TAILOR_MAX_PARTS];
  unsigned int count;
};

// One step of AdamW. Where the three arrays are null, the three numbers count for every value.
struct TailorAdam {
  float* values;
  const float* gradient;
  const float* rates;         // learning rate over the first moment's correction
  const float* corrections;   // of the second moment
  const float* decays;        // what a value is multiplied with
  unsigned long long count;
  float gradient_scale, one_minus_beta1, one_minus_beta2, epsilon;
  float rate, correction, decay;
};

// A moment in 8 bits: value = map[code] * scale of its block of 256.
struct TailorMoment8 {
  unsigned char* codes;
  float* scales;
  const float* map;      // [256] ascending
  const float* middles;  // [255] where the nearest entry changes
};

// Where a step's new tokens stand and where their sequences' keys are (kernels/paged.cu).
struct TailorPagedStep {
  const int* positions;  // [N] places in their sequences
  const int* slots;      // [N] where their keys and values are put
  const int* tables;     // [N] where the numbers of their sequences' blocks begin
  const int* blocks;
};

// A row's adapter for one linear layer (kernels/low_rank.cu): A [rank, in], B [out, b_stride] in bf16, b_stride a multiple
// of 8; a rank of 0 is none.
struct TailorLowRankTerm {
  const void *a, *b;
  unsigned int rank, b_stride;
  float scale;
  unsigned int unused;
};

// Where the outputs of up to four weights begin in a row, and at [count] where the last ones end.
struct TailorLowRankOutputs {
  unsigned int starts[TAILOR_MAX_PARTS + 1];
  unsigned int count;
};
