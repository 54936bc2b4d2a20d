use half::bf16;

use super::*;
use crate::{Backend, BlockSize, Code, Float, quantize};

fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next() + next() + next()).collect()
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for count in [1, 2, 15, 16, 31, 64, 65, 127, 1000, 70_001] {
        for dtype in [Float::F32, Float::Bf16, Float::F16] {
            for code in [Code::Nf4, Code::Fp4, Code::Uniform4] {
                let values: Vec<f32> = noise(count).into_iter().map(|x| dtype.round(x)).collect();
                let weight = quantize(&values, &[count], dtype, code, BlockSize::DEFAULT, true, Backend::Cpu).unwrap();
                let run = |instructions| {
                    let view = View::with_instructions(&weight, instructions);
                    let (mut wide, mut narrow) = (vec![9f32; count], vec![bf16::from_f32(9.0); count]);
                    view.dequantize_f32(&mut wide);
                    view.dequantize_bf16(&mut narrow);
                    (wide.into_iter().map(f32::to_bits).collect::<Vec<_>>(), narrow)
                };
                let portable = run(Instructions::Portable);
                assert_eq!(run(Instructions::Avx2), portable, "{code:?} {dtype:?} {count}");
                assert_eq!(run(Instructions::Avx512), portable, "{code:?} {dtype:?} {count}");
            }
        }
    }
}

#[test]
fn error_stays_below_half_the_widest_gap() {
    let values = noise(64 * 100);
    let weight = quantize(&values, &[100, 64], Float::F32, Code::Nf4, BlockSize::DEFAULT, false, Backend::Cpu).unwrap();
    let mut back = vec![0f32; values.len()];
    weight.dequantize_f32(&mut back);
    let widest_gap = crate::NF4.windows(2).map(|pair| pair[1] - pair[0]).fold(0f32, f32::max);
    for (block, back) in values.chunks(64).zip(back.chunks(64)) {
        let absmax = block.iter().fold(0f32, |max, x| max.max(x.abs()));
        for (x, y) in block.iter().zip(back) {
            assert!((x - y).abs() <= widest_gap / 2.0 * absmax * 1.0001, "{x} became {y} with scale {absmax}");
        }
    }
}

#[test]
fn large_outputs_are_the_same_at_any_alignment() {
    const COUNT: usize = (8 << 20) + 37; // written past the caches, with a tail
    let weight =
        quantize(&noise(COUNT), &[COUNT], Float::Bf16, Code::Nf4, BlockSize::DEFAULT, true, Backend::Cpu).unwrap();
    let mut portable = vec![bf16::ZERO; COUNT];
    View::with_instructions(&weight, Instructions::Portable).dequantize_bf16(&mut portable);
    let mut room = vec![bf16::ZERO; COUNT + 64];
    let to_line = (64 - room.as_ptr().addr() % 64) % 64 / 2;
    for offset in [to_line, to_line + 1] {
        let out = &mut room[offset..offset + COUNT];
        View::new(&weight).dequantize_bf16(out);
        assert!(out == portable, "{offset}");
    }
}
