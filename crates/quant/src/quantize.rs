//! From floats to 4 bits: QLoRA, arXiv 2305.14314 §2 and §3, to bitsandbytes' bits.
//!
//! Values are taken a task at a time, decoded where they are not f32, so a whole tensor is never in memory as f32. The
//! plain Rust body is compiled for AVX2 too; AVX-512 has its own. All give the same bytes.

use std::sync::LazyLock;

use rayon::prelude::*;

use crate::code::{Backend, Code, dynamic_map};
use crate::dequantize::Instructions;
use crate::mean::mean;
use crate::state::NestedState;
use crate::values::Values;
use crate::{Bytes, Error, Float, NESTED_BLOCK, QuantState, Quantized, Result, Scales};

#[cfg(target_arch = "x86_64")]
mod avx512;

/// Values one task takes: enough work to be worth handing over, few enough to stay in a core's cache as f32.
const VALUES_PER_TASK: usize = 1 << 16;

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
    let offset = double.then_some(mean as fn(&[f32]) -> f32);
    quantize_inner(Values::Plain(values), shape, dtype, code, blocksize, offset, backend)
}

/// As [`quantize`], from the little-endian bytes of a tensor of type `dtype`: in a map, say.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_bytes(
    bytes: &[u8],
    shape: &[usize],
    dtype: Float,
    code: Code,
    blocksize: BlockSize,
    double: bool,
    backend: Backend,
) -> Result<Quantized> {
    let offset = double.then_some(mean as fn(&[f32]) -> f32);
    quantize_inner(Values::Encoded(dtype, bytes), shape, dtype, code, blocksize, offset, backend)
}

/// As [`quantize`] with double quantisation around a given offset in place of the mean of the scales. PyTorch's mean of
/// 32,768 scales or more depends on its threads in the last bits, so there a comparison to the bit needs its offset.
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
    quantize_inner(Values::Plain(values), shape, dtype, code, blocksize, Some(|_: &[f32]| offset), backend)
}

fn quantize_inner(
    values: Values<'_>,
    shape: &[usize],
    dtype: Float,
    code: Code,
    blocksize: BlockSize,
    offset: Option<impl Fn(&[f32]) -> f32>,
    backend: Backend,
) -> Result<Quantized> {
    if shape.iter().product::<usize>() != values.len() || values.len() == 0 {
        return Err(Error::Value(format!("shape {shape:?} does not have {} values", values.len())));
    }
    let blocksize = blocksize.get();
    let state = |nested| QuantState { code, blocksize, dtype, shape: shape.to_vec(), nested };
    if code == Code::Uniform4 {
        let (packed, width, minimum) = uniform_blocks(values, blocksize)?;
        return Quantized::new(&state(None), None, packed.into(), Scales::Affine { width, minimum });
    }
    let (packed, absmax) = absmax_blocks(values, code, blocksize)?;
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

/// Calls `work` for each task with the task's values in f32, all of them finite.
fn for_tasks<T: Send>(
    values: Values<'_>,
    blocksize: usize,
    tasks: impl IndexedParallelIterator<Item = T>,
    work: impl Fn(T, &[f32]) + Sync,
) -> Result<()> {
    let task_values = blocks_per_task(blocksize) * blocksize;
    tasks.enumerate().try_for_each_init(Vec::new, |buffer, (number, task)| {
        let first = number * task_values;
        let part = values.part(first, task_values);
        let decoded = part.decoded(buffer);
        // Without a branch, so that it becomes vector code: an exponent of all ones is infinite or no number.
        const EXPONENT: u32 = 0x7f80_0000;
        let odd = |value: &f32| value.to_bits() & EXPONENT == EXPONENT;
        if decoded.iter().fold(false, |any, value| any | odd(value)) {
            let at = decoded.iter().position(odd).unwrap_or_default();
            let (index, value) = (first + at, decoded[at]);
            return Err(Error::Value(format!("value {index} is {value}; only finite weights can be quantised")));
        }
        work(task, decoded);
        Ok(())
    })
}

fn blocks_per_task(blocksize: usize) -> usize {
    (VALUES_PER_TASK / blocksize).max(1)
}

/// Packed numbers and one absolute maximum a block.
fn absmax_blocks(values: Values<'_>, code: Code, blocksize: usize) -> Result<(Vec<u8>, Vec<f32>)> {
    let (thresholds, order) = code.intervals();
    let instructions = Instructions::detect();
    let mut packed = vec![0u8; values.len().div_ceil(2)];
    let mut absmax = vec![0f32; values.len().div_ceil(blocksize)];
    let blocks = blocks_per_task(blocksize);
    let tasks = packed.par_chunks_mut(blocks * blocksize / 2).zip(absmax.par_chunks_mut(blocks));
    for_tasks(values, blocksize, tasks, |(packed, absmax), values| {
        for ((packed, absmax), block) in packed.chunks_mut(blocksize / 2).zip(absmax).zip(values.chunks(blocksize)) {
            *absmax = quantize_block(instructions, block, blocksize, &thresholds, &order, packed);
        }
    })?;
    Ok((packed, absmax))
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
        Instructions::Avx512 | Instructions::Amx if block.len() == blocksize => unsafe {
            avx512::block(block, thresholds, order, packed)
        },
        // SAFETY: as above; AVX-512 comes with AVX2.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 | Instructions::Avx512 | Instructions::Amx => unsafe {
            quantize_block_avx2(block, blocksize, thresholds, order, packed)
        },
        _ => quantize_block_body(block, blocksize, thresholds, order, packed),
    }
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
fn uniform_blocks(values: Values<'_>, blocksize: usize) -> Result<(Vec<u8>, Vec<f32>, Vec<f32>)> {
    let blocks = values.len().div_ceil(blocksize);
    let (mut packed, mut width, mut minimum) =
        (vec![0u8; values.len().div_ceil(2)], vec![0f32; blocks], vec![0f32; blocks]);
    let blocks = blocks_per_task(blocksize);
    let scales = width.par_chunks_mut(blocks).zip(minimum.par_chunks_mut(blocks));
    let tasks = packed.par_chunks_mut(blocks * blocksize / 2).zip(scales);
    for_tasks(values, blocksize, tasks, |(packed, (width, minimum)), values| {
        let scales = width.iter_mut().zip(minimum);
        for ((packed, (width, minimum)), block) in
            packed.chunks_mut(blocksize / 2).zip(scales).zip(values.chunks(blocksize))
        {
            *minimum = block.iter().copied().fold(f32::INFINITY, f32::min);
            *width = block.iter().copied().fold(f32::NEG_INFINITY, f32::max) - *minimum;
            let bucket = |x: f32| match *width > 0.0 {
                true => (((x - *minimum) / *width) * 15.0).round().clamp(0.0, 15.0) as u8,
                false => 0,
            };
            for (byte, pair) in packed.iter_mut().zip(block.chunks(2)) {
                *byte = bucket(pair[0]) << 4 | pair.get(1).map_or(0, |&x| bucket(x));
            }
        }
    })?;
    Ok((packed, width, minimum))
}

/// 8-bit numbers of `absmax − offset` in blocks of [`NESTED_BLOCK`], and the scale of each such block.
fn quantize_scales(absmax: &[f32], offset: f32, map: &[f32; 256], backend: Backend) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0u8; absmax.len()];
    let mut scales = vec![0f32; absmax.len().div_ceil(NESTED_BLOCK)];
    for ((codes, scale), block) in codes.chunks_mut(NESTED_BLOCK).zip(&mut scales).zip(absmax.chunks(NESTED_BLOCK)) {
        *scale = block.iter().fold(0f32, |max, x| max.max((x - offset).abs()));
        // Unlike the weights' scales these have no guard in bitsandbytes: where all are equal, 0 · ∞ is no number, and that
        // becomes code 0. The scale is 0 then, so the value is the offset whatever the code.
        let inverse = 1.0 / *scale;
        for (code, x) in codes.iter_mut().zip(block) {
            let scaled = ((x - offset) * inverse).clamp(-1.0, 1.0);
            *code = match backend {
                Backend::Cpu => NEAREST[((scaled + 1.0) * 0.5 * 65535.0 + 0.5) as u16 as usize],
                Backend::Cuda => nearest(map, scaled),
            };
        }
    }
    (codes, scales)
}

/// The nearest entry of the map, by the midpoints between its entries.
fn nearest(map: &[f32; 256], x: f32) -> u8 {
    let threshold = |i: usize| (map[i] + map[i + 1]) / 2.0;
    let (mut low, mut high) = (0usize, 255usize);
    while low < high {
        let middle = (low + high) / 2;
        if threshold(middle) < x { low = middle + 1 } else { high = middle }
    }
    low as u8
}

/// The table of the CPU back end: the nearest entry at 65,536 equidistant points of [-1, 1].
static NEAREST: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let map = dynamic_map();
    (0..=u16::MAX).map(|i| nearest(&map, i as f32 / 65535.0 * 2.0 - 1.0)).collect()
});

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
