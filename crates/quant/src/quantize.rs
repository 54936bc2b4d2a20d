//! From floats to 4 bits: QLoRA, arXiv 2305.14314 §2 and §3, to bitsandbytes' bits.
//!
//! The bodies are plain Rust that the compiler turns into vector code; each is compiled once for every instruction set
//! and chosen at run time.

use rayon::prelude::*;

use crate::code::{Backend, Code, dynamic_map};
use crate::dequantize::Instructions;
use crate::state::NestedState;
use crate::{Bytes, Error, Float, NESTED_BLOCK, QuantState, Quantized, Result, Scales};

/// Blocks one task takes: enough work to be worth handing over.
const BLOCKS_PER_TASK: usize = 1024;

/// Smallest scale that is inverted; bitsandbytes' guard against dividing by zero.
const MIN_SCALE: f32 = 1e-38;

/// Number of values that share a scale. 64 in QLoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize(usize);

impl BlockSize {
    pub const DEFAULT: Self = Self(64);

    /// # Errors
    /// Not one of the sizes bitsandbytes has.
    pub fn try_new(size: usize) -> Result<Self> {
        if (32..=4096).contains(&size) && size.is_power_of_two() {
            return Ok(Self(size));
        }
        Err(Error::Value(format!("block size {size} is not one of 32, 64, 128, 256, 512, 1024, 2048, 4096")))
    }

    pub fn get(self) -> usize {
        self.0
    }
}

/// Quantises `values`, which came from a tensor of type `dtype` and of this shape.
///
/// `double` quantises the scales too; the uniform code ignores it.
///
/// # Errors
/// A value that is not finite, or a shape that has another number of values.
pub fn quantize(
    values: &[f32],
    shape: &[usize],
    dtype: Float,
    code: Code,
    blocksize: BlockSize,
    double: bool,
    backend: Backend,
) -> Result<Quantized> {
    let mean = |absmax: &[f32]| (absmax.iter().map(|&x| x as f64).sum::<f64>() / absmax.len() as f64) as f32;
    let offset = double.then_some(mean as fn(&[f32]) -> f32);
    quantize_inner(values, shape, dtype, code, blocksize, offset, backend)
}

/// As [`quantize`] with double quantisation around a given offset in place of the mean of the scales: the mean depends
/// on the order of summation in its last bit, so a comparison to the bit needs the other side's offset.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_with_offset(
    values: &[f32],
    shape: &[usize],
    dtype: Float,
    code: Code,
    blocksize: BlockSize,
    offset: f32,
    backend: Backend,
) -> Result<Quantized> {
    quantize_inner(values, shape, dtype, code, blocksize, Some(|_: &[f32]| offset), backend)
}

fn quantize_inner(
    values: &[f32],
    shape: &[usize],
    dtype: Float,
    code: Code,
    blocksize: BlockSize,
    offset: Option<impl Fn(&[f32]) -> f32>,
    backend: Backend,
) -> Result<Quantized> {
    if shape.iter().product::<usize>() != values.len() || values.is_empty() {
        return Err(Error::Value(format!("shape {shape:?} does not have {} values", values.len())));
    }
    if let Some(index) = values.par_iter().position_any(|value| !value.is_finite()) {
        return Err(Error::Value(format!("value {index} is {}; only finite weights can be quantised", values[index])));
    }
    let blocksize = blocksize.get();
    let state = |nested| QuantState { code, blocksize, dtype, shape: shape.to_vec(), nested };
    if code == Code::Uniform4 {
        let (packed, width, minimum) = uniform_blocks(values, blocksize);
        return Quantized::new(&state(None), None, packed.into(), Scales::Affine { width, minimum });
    }
    let (packed, absmax) = absmax_blocks(values, code, blocksize);
    let Some(offset) = offset else {
        return Quantized::new(&state(None), None, packed.into(), Scales::Single(absmax));
    };
    let offset = offset(&absmax);
    let map = Box::new(dynamic_map());
    let (codes, nested_absmax) = quantize_scales(&absmax, offset, &map, backend);
    let scales =
        Scales::Nested { codes: Bytes::from(codes), map, absmax: nested_absmax, blocksize: NESTED_BLOCK, offset };
    let nested = Some(NestedState { blocksize: NESTED_BLOCK, offset });
    Quantized::new(&state(nested), None, packed.into(), scales)
}

/// Packed numbers and one absolute maximum a block.
fn absmax_blocks(values: &[f32], code: Code, blocksize: usize) -> (Vec<u8>, Vec<f32>) {
    let (thresholds, order) = code.intervals();
    let instructions = Instructions::detect();
    let mut packed = vec![0u8; values.len().div_ceil(2)];
    let mut absmax = vec![0f32; values.len().div_ceil(blocksize)];
    packed
        .par_chunks_mut(BLOCKS_PER_TASK * blocksize / 2)
        .zip(absmax.par_chunks_mut(BLOCKS_PER_TASK))
        .zip(values.par_chunks(BLOCKS_PER_TASK * blocksize))
        .for_each(|((packed, absmax), values)| {
            let blocks = packed.chunks_mut(blocksize / 2).zip(absmax).zip(values.chunks(blocksize));
            for ((packed, absmax), block) in blocks {
                *absmax = quantize_block(instructions, block, blocksize, &thresholds, &order, packed);
            }
        });
    (packed, absmax)
}

fn quantize_block(
    instructions: Instructions,
    block: &[f32],
    blocksize: usize,
    thresholds: &[f32; 15],
    order: &[u8; 16],
    packed: &mut [u8],
) -> f32 {
    match instructions {
        // SAFETY: `Instructions::detect` has seen these features on this processor.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => unsafe { quantize_block_avx512(block, blocksize, thresholds, order, packed) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => unsafe { quantize_block_avx2(block, blocksize, thresholds, order, packed) },
        _ => quantize_block_body(block, blocksize, thresholds, order, packed),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn quantize_block_avx512(block: &[f32], size: usize, thresholds: &[f32; 15], order: &[u8; 16], out: &mut [u8]) -> f32 {
    quantize_block_body(block, size, thresholds, order, out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_block_avx2(block: &[f32], size: usize, thresholds: &[f32; 15], order: &[u8; 16], out: &mut [u8]) -> f32 {
    quantize_block_body(block, size, thresholds, order, out)
}

#[inline(always)]
fn quantize_block_body(
    block: &[f32],
    blocksize: usize,
    thresholds: &[f32; 15],
    order: &[u8; 16],
    packed: &mut [u8],
) -> f32 {
    let mut absmax = block.iter().fold(0f32, |max, x| max.max(x.abs()));
    let guarded = absmax.max(MIN_SCALE);
    // bitsandbytes multiplies full blocks by the inverse, but divides the last, shorter one and stores the guard there.
    let full = block.len() == blocksize;
    let inverse = 1.0 / guarded;
    if !full {
        absmax = guarded;
    }
    const LANES: usize = 32;
    for (values, bytes) in block.chunks(LANES).zip(packed.chunks_mut(LANES / 2)) {
        let mut scaled = [0f32; LANES];
        for (scaled, &x) in scaled.iter_mut().zip(values) {
            *scaled = if full { x * inverse } else { x / guarded };
        }
        // Number of thresholds below x: fifteen comparisons that vectorise, no branch.
        let mut interval = [0u32; LANES];
        for &threshold in thresholds {
            for (interval, &x) in interval.iter_mut().zip(&scaled) {
                *interval += (threshold < x) as u32;
            }
        }
        for (byte, pair) in bytes.iter_mut().zip(interval.chunks_exact(2)) {
            *byte = order[(pair[0] & 15) as usize] << 4 | order[(pair[1] & 15) as usize];
        }
    }
    absmax
}

/// Uniform code: packed numbers, widths (maximum − minimum) and minima.
fn uniform_blocks(values: &[f32], blocksize: usize) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let blocks = values.len().div_ceil(blocksize);
    let (mut packed, mut width, mut minimum) =
        (vec![0u8; values.len().div_ceil(2)], vec![0f32; blocks], vec![0f32; blocks]);
    let parts = packed.par_chunks_mut(blocksize / 2).zip(&mut width).zip(&mut minimum);
    parts.zip(values.par_chunks(blocksize)).for_each(|(((packed, width), minimum), block)| {
        *minimum = block.iter().copied().fold(f32::INFINITY, f32::min);
        *width = block.iter().copied().fold(f32::NEG_INFINITY, f32::max) - *minimum;
        let bucket = |x: f32| match *width > 0.0 {
            true => (((x - *minimum) / *width) * 15.0).round().clamp(0.0, 15.0) as u8,
            false => 0,
        };
        for (byte, pair) in packed.iter_mut().zip(block.chunks(2)) {
            *byte = bucket(pair[0]) << 4 | pair.get(1).map_or(0, |&x| bucket(x));
        }
    });
    (packed, width, minimum)
}

/// 8-bit numbers of `absmax − offset` in blocks of [`NESTED_BLOCK`], and the scale of each such block.
fn quantize_scales(absmax: &[f32], offset: f32, map: &[f32; 256], backend: Backend) -> (Vec<u8>, Vec<f32>) {
    let nearest = |x: f32| {
        let thresholds = |i: usize| (map[i] + map[i + 1]) / 2.0;
        let (mut low, mut high) = (0usize, 255usize);
        while low < high {
            let middle = (low + high) / 2;
            if thresholds(middle) < x { low = middle + 1 } else { high = middle }
        }
        low as u8
    };
    // The table of the CPU back end: the nearest entry at 65,536 equidistant points.
    let table: Vec<u8> = match backend {
        Backend::Cpu => (0..=u16::MAX).map(|i| nearest(i as f32 / 65535.0 * 2.0 - 1.0)).collect(),
        Backend::Cuda => Vec::new(),
    };
    let mut codes = vec![0u8; absmax.len()];
    let mut scales = vec![0f32; absmax.len().div_ceil(NESTED_BLOCK)];
    for ((codes, scale), block) in codes.chunks_mut(NESTED_BLOCK).zip(&mut scales).zip(absmax.chunks(NESTED_BLOCK)) {
        *scale = block.iter().fold(0f32, |max, x| max.max((x - offset).abs()));
        let inverse = 1.0 / scale.max(MIN_SCALE);
        for (code, x) in codes.iter_mut().zip(block) {
            let scaled = ((x - offset) * inverse).clamp(-1.0, 1.0);
            *code = match backend {
                Backend::Cpu => table[((scaled + 1.0) * 0.5 * 65535.0 + 0.5) as u16 as usize],
                Backend::Cuda => nearest(scaled),
            };
        }
    }
    (codes, scales)
}

#[cfg(test)]
mod tests;
