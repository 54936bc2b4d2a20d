//! A weight as the kernels take it.

use std::ops::Range;

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::scales::{self, Planes};
use super::{BLOCK, LARGEST_LEVEL, Levels, STRIDE};
use crate::{CompactBf16, Float, Quantized, Scales};

/// A hint that so many bytes will be read.
#[inline(always)]
fn prefetch(bytes: &[u8], first: usize, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (first..first + count).step_by(64) {
        // SAFETY: every x86-64 has the instruction, which may point anywhere.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(at).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, first, count);
}

/// W [out, in].
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    FourBit(Matrix<'a>),
    /// The other way, x·W, where [`Matrix::goes_back`]: x [M, out], y [M, width].
    FourBitBack(Matrix<'a>),
    /// Row by row.
    Bf16(&'a [bf16]),
    /// The same, for an input that is prepared for weights in bf16 alone.
    Compact(&'a CompactBf16),
}

/// A 4-bit weight whose rows are whole blocks and whose blocks have one scale each.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    weight: &'a Quantized,
    out: usize,
    width: usize,
    /// Levels as integers, and what one of them is worth before the block's scale.
    levels: Levels,
    unit: f32,
    /// What a scale's code stands for, byte by byte, where the processor looks it up so.
    #[cfg(target_arch = "x86_64")]
    planes: Option<Planes>,
}

impl<'a> Matrix<'a> {
    /// None where the kernels do not take it: no matrix, rows that are no whole blocks of [`BLOCK`], smaller blocks, or
    /// a code with minima (uniform).
    pub fn new(weight: &'a Quantized) -> Option<Self> {
        let &[out, width] = weight.shape() else { return None };
        let whole = width.is_multiple_of(BLOCK) && weight.blocksize() >= BLOCK;
        if !whole || matches!(weight.scales(), Scales::Affine { .. }) {
            return None;
        }
        let largest = weight.values().iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let unit = if largest > 0.0 { largest / LARGEST_LEVEL } else { 1.0 };
        let values = weight.values().map(|value| (value / unit).round_ties_even() as i16);
        let bytes = |shift: u32| values.map(|level| (level as u16 >> shift) as u8);
        let levels = Levels { values, low: bytes(0), high: bytes(8) };
        Some(Self {
            weight,
            out,
            width,
            levels,
            unit,
            #[cfg(target_arch = "x86_64")]
            planes: match weight.scales() {
                Scales::Nested { map, .. } if scales::available() => Some(Planes::new(map)),
                _ => None,
            },
        })
    }

    pub fn out(&self) -> usize {
        self.out
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether there are kernels for x·W, of more than a few rows of an x that is prepared for AVX2.
    pub fn goes_back(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return super::avx2::available() && self.out.is_multiple_of(BLOCK);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether what the weight stands for are values in f16, to which a dequantised one is rounded first.
    pub(super) fn is_f16(&self) -> bool {
        self.weight.dtype() == Float::F16
    }

    /// The code book.
    pub(super) fn values(&self) -> &'a [f32; 16] {
        self.weight.values()
    }

    pub(super) fn levels(&self) -> &Levels {
        &self.levels
    }

    pub(super) fn unit(&self) -> f32 {
        self.unit
    }

    /// The packed bytes of some blocks of a row.
    #[inline(always)]
    pub(super) fn bytes(&self, row: usize, blocks: Range<usize>) -> &'a [u8] {
        self.strip(row, 1, blocks)
    }

    /// From the first of some blocks of a row to the last of the same blocks of the last of `outs` rows.
    #[inline(always)]
    pub(super) fn strip(&self, row: usize, outs: usize, blocks: Range<usize>) -> &'a [u8] {
        let place = |row: usize, block: usize| (row * self.width + block * BLOCK) / 2;
        &self.weight.packed()[place(row, blocks.start)..place(row + outs - 1, blocks.end)]
    }

    /// The scales of some rows' blocks, each row's with zeros to whole strides.
    #[inline(always)]
    pub(super) fn scales(&self, first: usize, rows: usize, out: &mut [f32]) {
        let (blocks, padded) = (self.width / BLOCK, self.padded_blocks());
        if blocks == padded {
            return self.run_of_scales(first * blocks, &mut out[..rows * blocks]);
        }
        for (row, out) in (first..first + rows).zip(out.chunks_exact_mut(padded)) {
            let (out, padding) = out.split_at_mut(blocks);
            self.run_of_scales(row * blocks, out);
            padding.fill(0.0);
        }
    }

    /// The scale of a block of a row.
    #[inline]
    pub(super) fn scale(&self, row: usize, block: usize) -> f32 {
        let at = (row * (self.width / BLOCK) + block) / (self.weight.blocksize() / BLOCK);
        match self.weight.scales() {
            Scales::Single(absmax) => absmax[at],
            Scales::Nested { codes, map, absmax, blocksize, offset } => {
                map[usize::from(codes[at])] * absmax[at / blocksize] + offset
            }
            // The constructor takes none.
            Scales::Affine { .. } => 0.0,
        }
    }

    /// The scales of as many blocks as `out` has room for, from block `first` of the whole weight on.
    fn run_of_scales(&self, first: usize, out: &mut [f32]) {
        let blocks = out.len();
        let ratio = self.weight.blocksize() / BLOCK; // a power of two
        match self.weight.scales() {
            Scales::Single(absmax) if ratio == 1 => out.copy_from_slice(&absmax[first..first + blocks]),
            Scales::Single(absmax) => {
                let mut at = 0;
                while at < blocks {
                    // A run that has one scale.
                    let scale = (first + at) / ratio;
                    let count = ((scale + 1) * ratio - first - at).min(blocks - at);
                    out[at..at + count].fill(absmax[scale]);
                    at += count;
                }
            }
            Scales::Nested { codes, map, absmax, blocksize, offset } if ratio == 1 => {
                // The codes that come next: a stream too thin for the processor to see it coming.
                prefetch(codes, first + blocks, blocks);
                let mut at = 0;
                while at < blocks {
                    // A run that has one second-level scale.
                    let outer = (first + at) / blocksize;
                    let count = ((outer + 1) * blocksize - first - at).min(blocks - at);
                    let codes = &codes[first + at..first + at + count];
                    let scale = absmax[outer];
                    let out = &mut out[at..at + count];
                    at += count;
                    #[cfg(target_arch = "x86_64")]
                    if let Some(planes) = &self.planes {
                        // SAFETY: the constructor has seen the instructions.
                        unsafe { planes.decode(codes, scale, *offset, out) };
                        continue;
                    }
                    #[cfg(target_arch = "x86_64")]
                    if super::avx2::available() {
                        // SAFETY: just looked at.
                        unsafe { scales::decode(codes, map, scale, *offset, out) };
                        continue;
                    }
                    for (out, code) in out.iter_mut().zip(codes) {
                        *out = map[*code as usize] * scale + offset;
                    }
                }
            }
            Scales::Nested { codes, map, absmax, blocksize, offset } => {
                for (at, out) in out.iter_mut().enumerate() {
                    let block = (first + at) / ratio;
                    *out = map[codes[block] as usize] * absmax[block / blocksize] + offset;
                }
            }
            // The constructor takes none.
            Scales::Affine { .. } => {}
        }
    }

    /// Room for the scales of a row.
    pub(super) fn padded_blocks(&self) -> usize {
        (self.width / BLOCK).next_multiple_of(STRIDE)
    }
}
