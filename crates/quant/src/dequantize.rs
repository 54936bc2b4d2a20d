//! From 4 bits to floats, on the fly.
//!
//! A block's 16 possible results are worked out once (value · scale, rounded to the weight's own type); after that every
//! element is one table look-up, which AVX-512 and AVX2 do for 16 or 8 elements at a time. All variants give the same bits.

use half::bf16;
use rayon::prelude::*;

use crate::{Quantized, Scales};

#[cfg(target_arch = "x86_64")]
mod x86;

/// Elements one task takes. Smaller weights stay on the calling thread.
const ELEMENTS_PER_TASK: usize = 1 << 16;

/// The vector instructions in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    Portable,
    Avx2,
    Avx512,
}

impl Instructions {
    /// The best this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
            {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => Self::detect() != Self::Portable,
            Self::Avx512 => Self::detect() == Self::Avx512,
        }
    }
}

/// A weight about to be dequantised with given instructions.
#[derive(Clone, Copy)]
pub struct View<'a> {
    weight: &'a Quantized,
    instructions: Instructions,
}

impl<'a> View<'a> {
    pub fn new(weight: &'a Quantized) -> Self {
        Self { weight, instructions: Instructions::detect() }
    }

    /// With given instructions, or [`Instructions::Portable`] where the processor lacks them.
    pub fn with_instructions(weight: &'a Quantized, instructions: Instructions) -> Self {
        let instructions = if instructions.available() { instructions } else { Instructions::Portable };
        Self { weight, instructions }
    }

    /// # Panics
    /// `out` has not as many entries as the weight.
    pub fn dequantize_f32(&self, out: &mut [f32]) {
        let look_up = |table: &[f32; 16], packed: &[u8], out: &mut [f32]| match self.instructions {
            // SAFETY: the constructor has seen these instructions on this processor.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => unsafe { x86::look_up_f32_avx512(table, packed, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { x86::look_up_f32_avx2(table, packed, out) },
            _ => look_up(table, packed, out),
        };
        self.run(out, |value| value, look_up);
    }

    /// # Panics
    /// `out` has not as many entries as the weight.
    pub fn dequantize_bf16(&self, out: &mut [bf16]) {
        let look_up = |table: &[bf16; 16], packed: &[u8], out: &mut [bf16]| match self.instructions {
            // SAFETY: the constructor has seen these instructions on this processor.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 | Instructions::Avx2 => unsafe { x86::look_up_bf16_avx2(table, packed, out) },
            _ => look_up(table, packed, out),
        };
        self.run(out, bf16::from_f32, look_up);
    }

    fn run<T: Copy + Send + Sync>(
        &self,
        out: &mut [T],
        convert: impl Fn(f32) -> T + Sync,
        look_up: impl Fn(&[T; 16], &[u8], &mut [T]) + Sync,
    ) {
        let weight = self.weight;
        assert_eq!(out.len(), weight.elements(), "output and weight differ in length");
        let blocksize = weight.blocksize();
        // A power of two not below the block size: tasks begin at block borders.
        let task = ELEMENTS_PER_TASK.max(blocksize);
        let run_task = |first: usize, out: &mut [T]| {
            for (i, out) in out.chunks_mut(blocksize).enumerate() {
                let start = first + i * blocksize;
                let packed = &weight.packed()[start / 2..(start + out.len()).div_ceil(2)];
                let table = table(weight, start / blocksize).map(&convert);
                look_up(&table, packed, out);
            }
        };
        if out.len() <= task {
            return run_task(0, out);
        }
        out.par_chunks_mut(task).enumerate().for_each(|(i, out)| run_task(i * task, out));
    }
}

/// The 16 results of one block.
#[inline]
fn table(weight: &Quantized, block: usize) -> [f32; 16] {
    let round = weight.dtype();
    let scaled = |scale: f32| weight.values().map(|value| round.round(value * scale));
    match weight.scales() {
        Scales::Single(absmax) => scaled(absmax[block]),
        Scales::Nested { codes, map, absmax, blocksize, offset } => {
            scaled(map[codes[block] as usize] * absmax[block / blocksize] + offset)
        }
        Scales::Affine { width, minimum } => {
            weight.values().map(|value| round.round(value * width[block] + minimum[block]))
        }
    }
}

/// Portable look-up: `out[2i]` by the high nibble, `out[2i + 1]` by the low one.
fn look_up<T: Copy>(table: &[T; 16], packed: &[u8], out: &mut [T]) {
    for (pair, &byte) in out.chunks_mut(2).zip(packed) {
        pair[0] = table[(byte >> 4) as usize];
        if let Some(second) = pair.get_mut(1) {
            *second = table[(byte & 15) as usize];
        }
    }
}

#[cfg(test)]
mod tests;
