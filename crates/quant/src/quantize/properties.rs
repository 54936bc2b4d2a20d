//! What holds for any tensor: random ones of every block size, with awkward values and lengths.

use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::View;

const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];
const CODES: [Code; 3] = [Code::Nf4, Code::Fp4, Code::Uniform4];
const OTHER_INSTRUCTIONS: [Instructions; 2] = [Instructions::Avx2, Instructions::Avx512];

/// `count` values of one kind, the kinds in turn.
fn values(random: &mut ChaCha8Rng, kind: usize, count: usize, code: Code) -> Vec<f32> {
    let (thresholds, _) = code.intervals();
    let scale = 2f32.powi(random.random_range(-20..20));
    let mut value = || {
        let even = random.random::<f32>() * 2.0 - 1.0;
        match kind % 6 {
            0 => even * scale,
            1 => even / random.random::<f32>().max(1e-4), // a few far out
            2 => thresholds[random.random_range(0..15)] * scale, // exactly on a threshold, where a block's scale is `scale`
            3 => [0.0, -0.0, even][random.random_range(0..3)],
            4 => even * 1e-37,
            _ => even * 1e37,
        }
    };
    let mut values: Vec<f32> = (0..count).map(|_| value()).collect();
    if kind % 6 == 2 {
        values.iter_mut().step_by(32).for_each(|value| *value = scale);
    }
    // Every other kind has a block without anything.
    if kind.is_multiple_of(2) {
        values.iter_mut().take(count / 3).for_each(|value| *value = 0.0);
    }
    values
}

/// Whole blocks, and a last one of any length.
fn length(random: &mut ChaCha8Rng, blocksize: usize) -> usize {
    blocksize * random.random_range(0..4) + random.random_range(1..=blocksize)
}

#[test]
fn any_block_quantises_to_the_same_bytes_with_every_instruction_set() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for blocksize in BLOCK_SIZES {
        for (code, kind) in [Code::Nf4, Code::Fp4].into_iter().flat_map(|code| (0..12).map(move |kind| (code, kind))) {
            let (thresholds, order) = code.intervals();
            let count = length(&mut random, blocksize);
            for block in values(&mut random, kind, count, code).chunks(blocksize) {
                let run = |instructions| {
                    let mut packed = vec![0u8; block.len().div_ceil(2)];
                    let absmax = quantize_block(instructions, block, blocksize, &thresholds, &order, &mut packed);
                    (absmax.to_bits(), packed)
                };
                let portable = run(Instructions::Portable);
                for instructions in OTHER_INSTRUCTIONS.into_iter().filter(|other| other.available()) {
                    let of = block.len();
                    assert_eq!(
                        run(instructions),
                        portable,
                        "{instructions:?} {code:?} kind {kind}, {of} of {blocksize}"
                    );
                }
            }
        }
    }
}

#[test]
fn any_weight_dequantises_to_the_same_bits_with_every_instruction_set() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for (round, blocksize) in BLOCK_SIZES.into_iter().cycle().take(32).enumerate() {
        let dtype = [Float::F32, Float::Bf16, Float::F16][round % 3];
        for code in CODES {
            let count = length(&mut random, blocksize);
            // Kinds that a 16-bit float holds.
            let values: Vec<f32> = values(&mut random, [0, 2, 3][round % 3], count, code);
            let values: Vec<f32> = values.into_iter().map(|value| dtype.round(value.clamp(-6e4, 6e4))).collect();
            let size = BlockSize::try_new(blocksize).unwrap();
            let weight = quantize(&values, &[count], dtype, code, size, round % 2 == 0, Backend::Cpu).unwrap();
            let run = |instructions| {
                let view = View::with_instructions(&weight, instructions);
                let (mut wide, mut narrow) = (vec![f32::NAN; count], vec![bf16::NAN; count]);
                view.dequantize_f32(&mut wide);
                view.dequantize_bf16(&mut narrow);
                (wide.into_iter().map(f32::to_bits).collect::<Vec<_>>(), narrow)
            };
            let portable = run(Instructions::Portable);
            for instructions in OTHER_INSTRUCTIONS {
                assert!(run(instructions) == portable, "{instructions:?} {code:?} {dtype:?}, {count} in {blocksize}");
            }
        }
    }
}

#[test]
fn no_value_moves_further_than_half_the_widest_gap() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for (blocksize, kind) in BLOCK_SIZES.into_iter().flat_map(|size| (0..6).map(move |kind| (size, kind))) {
        for (code, double) in CODES.into_iter().flat_map(|code| [(code, false), (code, true)]) {
            if double && kind == 5 {
                continue; // the mean of such scales is infinite
            }
            let count = length(&mut random, blocksize);
            let values = values(&mut random, kind, count, code);
            let size = BlockSize::try_new(blocksize).unwrap();
            let weight = quantize(&values, &[count], Float::F32, code, size, double, Backend::Cpu).unwrap();
            let mut back = vec![0f32; count];
            weight.dequantize_f32(&mut back);
            let mut book = code.values();
            book.sort_by(f32::total_cmp);
            let half_gap = book.windows(2).map(|pair| pair[1] - pair[0]).fold(0f32, f32::max) / 2.0;
            for (number, (block, back)) in values.chunks(blocksize).zip(back.chunks(blocksize)).enumerate() {
                let largest = block.iter().fold(0f32, |max, x| max.max(x.abs()));
                let limit = match weight.scales() {
                    Scales::Single(_) => half_gap * largest,
                    // The 8-bit scale is off by so much, and every value of the block with it.
                    Scales::Nested { codes, map, absmax, blocksize, offset } => {
                        let scale = map[codes[number] as usize] * absmax[number / blocksize] + offset;
                        half_gap * largest + (scale - largest).abs()
                    }
                    Scales::Affine { width, .. } => half_gap * width[number],
                };
                // Rounding of the arithmetic itself.
                let limit = limit + 1e-5 * largest;
                for (x, y) in block.iter().zip(back) {
                    let what = "of the widest gap";
                    assert!(
                        (x - y).abs() <= limit,
                        "{code:?} {blocksize} kind {kind}: {x} became {y}, limit {limit} {what}"
                    );
                }
            }
        }
    }
}
