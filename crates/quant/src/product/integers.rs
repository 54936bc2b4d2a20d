//! A block of activations as the integers that the 4-bit kernels multiply with, in the order in which these unpack levels.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{BLOCK, LARGEST_ACTIVATION, LARGEST_BLOCK, element};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, columns};

/// Below this magnitude a block counts as zero: its reciprocal would leave f32.
const SMALLEST: f32 = 1e-30;

/// What was made of the floats.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    #[default]
    Nothing,
    /// For AVX2 and a few rows, and where there are no vectors.
    Integers,
    /// The same for AVX-512 and one row.
    Blocks,
    /// The same for AVX-512 and several rows: a block's values as pairs that are unpacked together.
    Columns,
    /// The same for AVX2.
    ColumnsAvx2,
    Tiles,
    /// Not integers but two halves of bf16, for weights in bf16.
    Halves,
}

impl Made {
    /// Element of a block that stands in each place.
    fn order(self) -> &'static [u16; BLOCK] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Made::Blocks => &FOURTHS,
            #[cfg(target_arch = "x86_64")]
            Made::Columns => &COLUMNS,
            #[cfg(target_arch = "x86_64")]
            Made::ColumnsAvx2 => &COLUMNS_AVX2,
            _ => &ORDER,
        }
    }
}

/// Gives the scale.
#[inline(always)]
pub(super) fn quantize_block(input: &[f32; BLOCK], output: &mut [i16; BLOCK], made: Made) -> f32 {
    // As integers, magnitudes have the order of floats, with infinity and not-a-number last.
    let largest = input.iter().fold(0u32, |largest, value| largest.max(value.to_bits() & MAGNITUDE));
    let steps = match steps(f32::from_bits(largest), |scale| magnitude(input, scale)) {
        Ok(steps) => steps,
        Err(scale) => {
            *output = [0; BLOCK];
            return scale;
        }
    };
    let largest = f32::from_bits(largest);
    let inverse = steps / largest;
    let mut natural = [0i16; BLOCK];
    for (value, input) in natural.iter_mut().zip(input) {
        let shifted = input * inverse + NEAREST;
        *value = shifted.to_bits() as i16;
    }
    for (value, element) in output.iter_mut().zip(made.order()) {
        *value = natural[usize::from(*element)];
    }
    largest / steps
}

const MAGNITUDE: u32 = 0x7fff_ffff;
/// 1.5·2²³: with it added, the nearest integer, ties to even, is in the low bits.
const NEAREST: f32 = 12_582_912.0;

/// What the largest of a block becomes as an integer; the scale of a block of zeros, or of one that has no scale. `magnitude`:
/// Σ |x| · a factor.
#[inline(always)]
fn steps(largest: f32, magnitude: impl FnOnce(f32) -> f32) -> Result<f32, f32> {
    if !(SMALLEST..).contains(&largest) || !largest.is_finite() {
        return Err(if largest.is_finite() { 0.0 } else { f32::NAN });
    }
    Ok(LARGEST_ACTIVATION.min(LARGEST_BLOCK / magnitude(1.0 / largest)))
}

/// Σ |x| · `scale`, in sixteen sums.
#[inline(always)]
fn magnitude(input: &[f32; BLOCK], scale: f32) -> f32 {
    let mut sums = [0f32; 16];
    for input in input.as_chunks::<16>().0 {
        sums.iter_mut().zip(input).for_each(|(sum, x)| *sum += x.abs() * scale);
    }
    for half in [8, 4, 2, 1] {
        (0..half).for_each(|at| sums[at] += sums[at + half]);
    }
    sums[0]
}

/// As [`quantize_block`], in registers of AVX2.
///
/// # Safety
/// [`super::avx2::available`]
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn quantize_block_avx2(input: &[f32; BLOCK], output: &mut [i16; BLOCK], made: Made) -> f32 {
    quantize_block(input, output, made)
}

/// As [`quantize_block`], to the bit.
///
/// # Safety
/// [`avx512::available`]
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn quantize_block_avx512(input: &[f32; BLOCK], output: &mut [i16; BLOCK], made: Made) -> f32 {
    // SAFETY: four times sixteen values.
    let x: [__m512; 4] = std::array::from_fn(|at| unsafe { _mm512_loadu_ps(input.as_ptr().add(16 * at)) });
    let magnitudes = x.map(|x| _mm512_abs_ps(x));
    let [a, b, c, d] = magnitudes.map(|x| _mm512_castps_si512(x));
    let largest = _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d)));
    let largest = f32::from_bits(largest);
    let magnitude = |scale: f32| {
        let scale = _mm512_set1_ps(scale);
        let sums =
            magnitudes.into_iter().fold(_mm512_setzero_ps(), |sums, x| _mm512_add_ps(sums, _mm512_mul_ps(x, scale)));
        _mm512_reduce_add_ps(sums)
    };
    let steps = match steps(largest, magnitude) {
        Ok(steps) => steps,
        Err(scale) => {
            *output = [0; BLOCK];
            return scale;
        }
    };
    let inverse = _mm512_set1_ps(steps / largest);
    let [a, b, c, d] = x.map(|x| {
        let shifted = _mm512_add_ps(_mm512_mul_ps(x, inverse), _mm512_set1_ps(NEAREST));
        _mm512_cvtepi32_epi16(_mm512_castps_si512(shifted))
    });
    let pair = |low, high| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
    let (low, high) = (pair(a, b), pair(c, d));
    for at in 0..2 {
        // SAFETY: twice 32 places.
        unsafe {
            let order = _mm512_loadu_si512(made.order().as_ptr().add(32 * at).cast());
            let ordered = _mm512_permutex2var_epi16(low, order, high);
            _mm512_storeu_si512(output.as_mut_ptr().add(32 * at).cast(), ordered);
        }
    }
    largest / steps
}

/// A row's blocks made for one row, two by two: a fourth of one lies before the same fourth of the other, and zeros stand for the
/// other of the last of an odd number. `scales`: of each block, and zeros behind.
///
/// # Safety
/// [`avx512::available`]
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn quantize_pairs_avx512(input: &[[f32; BLOCK]], output: &mut [i16], scales: &mut [f32]) {
    let (scales, padding) = scales.split_at_mut(input.len());
    padding.fill(0.0);
    let output = output.as_chunks_mut::<{ 2 * BLOCK }>().0;
    for ((input, scales), output) in input.chunks(2).zip(scales.chunks_mut(2)).zip(output) {
        for half in 0..2 {
            let mut block = [0; BLOCK];
            if let (Some(input), Some(scale)) = (input.get(half), scales.get_mut(half)) {
                // SAFETY: as the caller says.
                *scale = unsafe { quantize_block_avx512(input, &mut block, Made::Blocks) };
            }
            const FOURTH: usize = BLOCK / 4;
            for (at, fourth) in block.as_chunks::<FOURTH>().0.iter().enumerate() {
                output[(2 * at + half) * FOURTH..][..FOURTH].copy_from_slice(fourth);
            }
        }
    }
}

/// Which element of a block stands in each place.
const fn order(made: Made) -> [u16; BLOCK] {
    let mut order = [0; BLOCK];
    let mut place = 0;
    while place < BLOCK {
        let element = match made {
            #[cfg(target_arch = "x86_64")]
            Made::Blocks => place % 16 * 4 + avx512::NEIGHBOUR[place / 16],
            #[cfg(target_arch = "x86_64")]
            Made::Columns => place / 8 * 8 + columns::PAIRED[place % 8],
            #[cfg(target_arch = "x86_64")]
            Made::ColumnsAvx2 => place / 8 * 8 + avx2::columns::PAIRED[place % 8],
            _ => element(place),
        };
        order[place] = element as u16;
        place += 1;
    }
    order
}

const ORDER: [u16; BLOCK] = order(Made::Integers);
#[cfg(target_arch = "x86_64")]
const FOURTHS: [u16; BLOCK] = order(Made::Blocks);
#[cfg(target_arch = "x86_64")]
const COLUMNS: [u16; BLOCK] = order(Made::Columns);
#[cfg(target_arch = "x86_64")]
const COLUMNS_AVX2: [u16; BLOCK] = order(Made::ColumnsAvx2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::LARGEST_LEVEL;

    const ALL: [Made; 4] = [Made::Integers, Made::Blocks, Made::Columns, Made::ColumnsAvx2];

    #[test]
    fn order_names_every_element_once() {
        for made in ALL {
            let mut seen = *made.order();
            seen.sort_unstable();
            assert_eq!(seen, std::array::from_fn(|i| i as u16));
        }
    }

    #[test]
    fn integers_are_within_half_a_step_of_the_floats() {
        let input: [f32; BLOCK] = std::array::from_fn(|i| ((i * 37 % 64) as f32 - 31.0) * 0.013);
        let mut output = [0; BLOCK];
        let scale = quantize_block(&input, &mut output, Made::Integers);
        for (place, value) in output.iter().enumerate() {
            let error = (f32::from(*value) * scale - input[usize::from(ORDER[place])]).abs();
            assert!(error <= 0.501 * scale, "{error} of {scale} at {place}");
        }
        for made in ALL {
            assert_eq!(quantize_block(&[0.0; BLOCK], &mut output, made), 0.0);
            assert!(quantize_block(&[f32::INFINITY; BLOCK], &mut output, made).is_nan());
            let mut spoiled = input;
            spoiled[17] = f32::NAN;
            assert!(quantize_block(&spoiled, &mut output, made).is_nan());
        }
    }

    fn inputs() -> [[f32; BLOCK]; 5] {
        [
            [3.0e38; BLOCK],
            std::array::from_fn(|i| if i % 2 == 0 { 1.0 } else { -1.0 }),
            std::array::from_fn(|i| (i as f32 * 0.7).sin()),
            std::array::from_fn(|i| 1e-29 * (i as f32 + 0.5)),
            std::array::from_fn(|i| if i == 5 { -3.0e38 } else { 1e-3 }),
        ]
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn instructions_make_no_difference() {
        if !avx512::available() {
            return;
        }
        let spoiled = [f32::NAN, f32::NEG_INFINITY, 0.0, 1e-40].map(|value| [value; BLOCK]);
        for input in inputs().into_iter().chain(spoiled) {
            for made in ALL {
                let mut outputs = [[1; BLOCK]; 2];
                let scale = quantize_block(&input, &mut outputs[0], made);
                // SAFETY: just looked at.
                let other = unsafe { quantize_block_avx512(&input, &mut outputs[1], made) };
                assert_eq!(scale.to_bits(), other.to_bits(), "{input:?}");
                assert_eq!(outputs[0], outputs[1], "{input:?}");
            }
        }
    }

    #[test]
    fn a_blocks_integers_leave_room_for_the_sum_of_its_products() {
        for input in inputs() {
            let natural = ALL.map(|made| {
                let (mut ordered, mut natural) = ([0; BLOCK], [0; BLOCK]);
                let scale = quantize_block(&input, &mut ordered, made);
                made.order().iter().zip(ordered).for_each(|(at, value)| natural[usize::from(*at)] = value);
                (natural, scale)
            });
            assert!(natural.iter().all(|other| *other == natural[0]), "one row and several");
            let (natural, scale) = natural[0];
            let together: i64 = natural.iter().map(|value| i64::from(*value).abs()).sum();
            assert!(together * LARGEST_LEVEL as i64 <= i64::from(i32::MAX), "{together}");
            for (value, input) in natural.iter().zip(input) {
                let error = (f32::from(*value) * scale - input).abs();
                assert!(error <= 0.501 * scale, "{error} of {scale}");
            }
        }
    }
}
