//! From 4 bits to floats, on the fly.
//!
//! A block's 16 possible results are worked out once (value · scale, rounded to the weight's own type); after that every
//! element is one table look-up, which AVX-512 and AVX2 do for 16 or 8 elements at a time. All variants give the same bits.

use half::bf16;
use rayon::prelude::*;

use crate::{Float, Quantized, Scales};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

/// Elements one task takes. Smaller weights stay on the calling thread.
const ELEMENTS_PER_TASK: usize = 1 << 16;

/// The vector instructions in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    Portable,
    Avx2,
    Avx512,
    /// AVX-512, and products of tiles in bf16.
    Amx,
}

impl Instructions {
    /// The best this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if crate::product::has_tiles() {
                return Self::Amx;
            }
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
            Self::Avx512 => matches!(Self::detect(), Self::Avx512 | Self::Amx),
            Self::Amx => Self::detect() == Self::Amx,
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
        self.run(out, |first, out| self.dequantize_f32_from(first, out));
    }

    /// # Panics
    /// `out` has not as many entries as the weight.
    pub fn dequantize_bf16(&self, out: &mut [bf16]) {
        self.run(out, |first, out| self.dequantize_bf16_from(first, out));
    }

    /// The elements from `first` on, on the calling thread: for callers with threads of their own.
    ///
    /// # Panics
    /// `first` is no multiple of the block size, or there are not as many elements after it.
    pub fn dequantize_f32_from(&self, first: usize, out: &mut [f32]) {
        let weight = self.weight;
        self.check(first, out.len());
        match self.instructions {
            // SAFETY: the constructor has seen these instructions on this processor.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 | Instructions::Amx => unsafe { avx512::blocks_f32(weight, first, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { avx2::blocks_f32_avx2(weight, first, out) },
            _ => blocks(weight, first, out, |value| value, look_up),
        }
    }

    /// As [`Self::dequantize_f32_from`].
    ///
    /// # Panics
    /// As [`Self::dequantize_f32_from`].
    pub fn dequantize_bf16_from(&self, first: usize, out: &mut [bf16]) {
        let weight = self.weight;
        self.check(first, out.len());
        match self.instructions {
            // SAFETY: the constructor has seen these instructions on this processor.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 | Instructions::Amx => unsafe { avx512::blocks_bf16(weight, first, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => unsafe { avx2::blocks_bf16_avx2(weight, first, out) },
            _ => blocks(weight, first, out, to_bf16, look_up),
        }
    }

    /// Elements that are worth a task of their own: a power of two not below the block size, so that tasks begin at
    /// block borders.
    pub fn task(&self) -> usize {
        ELEMENTS_PER_TASK.max(self.weight.blocksize())
    }

    fn check(&self, first: usize, count: usize) {
        assert!(first.is_multiple_of(self.weight.blocksize()), "{first} is not the beginning of a block");
        assert!(first + count <= self.weight.elements(), "output and weight differ in length");
    }

    /// Calls `work` with the number of the first element and the place for the elements, for each task.
    fn run<T: Send>(&self, out: &mut [T], work: impl Fn(usize, &mut [T]) + Sync) {
        assert_eq!(out.len(), self.weight.elements(), "output and weight differ in length");
        let task = self.task();
        if out.len() <= task {
            return work(0, out);
        }
        out.par_chunks_mut(task).enumerate().for_each(|(i, out)| work(i * task, out));
    }
}

/// The blocks from element `first` on. Inlined into a function of each instruction set, so that the arithmetic of the
/// tables becomes its vector code too.
#[inline(always)]
fn blocks<T: Copy>(
    weight: &Quantized,
    first: usize,
    out: &mut [T],
    convert: impl Fn(f32) -> T,
    look_up: impl Fn(&[T; 16], &[u8], &mut [T]),
) {
    let blocksize = weight.blocksize();
    for (i, out) in out.chunks_mut(blocksize).enumerate() {
        let start = first + i * blocksize;
        let packed = &weight.packed()[start / 2..(start + out.len()).div_ceil(2)];
        look_up(&table(weight, start / blocksize).map(&convert), packed, out);
    }
}

/// The 16 results of one block, rounded to the weight's own type.
#[inline(always)]
fn table(weight: &Quantized, block: usize) -> [f32; 16] {
    let values = weight.values();
    let exact = match weight.scales() {
        Scales::Single(absmax) => values.map(|value| value * absmax[block]),
        Scales::Nested { codes, map, absmax, blocksize, offset } => {
            let scale = map[codes[block] as usize] * absmax[block / blocksize] + offset;
            values.map(|value| value * scale)
        }
        Scales::Affine { width, minimum } => values.map(|value| value * width[block] + minimum[block]),
    };
    match weight.dtype() {
        Float::F32 => exact,
        Float::Bf16 => exact.map(|value| to_bf16(value).to_f32()),
        Float::F16 => exact.map(|value| Float::F16.round(value)),
    }
}

/// To nearest, ties to even. No value here is NaN: without that case it is a few vector instructions.
#[inline(always)]
fn to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    bf16::from_bits((bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
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
