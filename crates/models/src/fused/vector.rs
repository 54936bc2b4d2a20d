//! The loops between two products. Each is written once over plain arrays; on a processor with AVX2 the same code is compiled
//! for it.

use half::bf16;
use tch::Tensor;

use super::values;
use crate::Activation;
use crate::norm::{NormScale, RmsNorm};

/// Where threads write, each to rows of its own.
pub(super) struct Place(pub *mut f32);

// SAFETY: no two threads are given the same row.
unsafe impl Sync for Place {}

impl Place {
    /// # Safety
    /// The values are there, and nobody else has them.
    pub unsafe fn slice<'a>(&self, first: usize, count: usize) -> &'a mut [f32] {
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(first), count) }
    }
}

/// Compiles the body for AVX2 as well and takes that where the processor has it.
macro_rules! with_avx2 {
    ($name:ident => $vis:vis fn $public:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?) => {
        #[inline]
        $vis fn $public($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn fast($($arg: $type),*) $(-> $result)? { $name($($arg),*) }
                if tailor_quant::is_fast() {
                    // SAFETY: the processor has both.
                    return unsafe { fast($($arg),*) };
                }
            }
            $name($($arg),*)
        }
    };
}

with_avx2!(norm_body => fn norm_values(weight: &[bf16], plus_one: bool, eps: f32, x: &[f32], out: &mut [f32]));
with_avx2!(add_body => pub(super) fn add(x: &mut [f32], y: &[f32]));
with_avx2!(silu_body => fn silu(gate: &[f32], up: &[f32], out: &mut [f32]));
with_avx2!(widen_body => pub(super) fn widen(from: &[bf16], to: &mut [f32]));
with_avx2!(dot_body => pub(super) fn dot(a: &[f32], b: &[f32]) -> f32);
with_avx2!(add_scaled_body => pub(super) fn add_scaled(x: &mut [f32], y: &[f32], by: f32));
with_avx2!(softmax_body => pub(super) fn softmax(scores: &mut [f32]));

/// A norm's numbers, which threads may share, as they may not share a tensor. arXiv 1910.07467, by w or 1 + w.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    weight: &'a [bf16],
    plus_one: bool,
    eps: f32,
}

impl<'a> Norm<'a> {
    pub fn of(norm: &'a RmsNorm) -> Self {
        let (weight, plus_one) = (values(&norm.weight.tensor), norm.scale == NormScale::OnePlusWeight);
        Self { weight, plus_one, eps: norm.eps as f32 }
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.weight.len()
    }

    pub fn apply(&self, x: &[f32], out: &mut [f32]) {
        norm_values(self.weight, self.plus_one, self.eps, x, out);
    }
}

#[inline(always)]
fn norm_body(weight: &[bf16], plus_one: bool, eps: f32, x: &[f32], out: &mut [f32]) {
    let factor = 1.0 / (dot_body(x, x) / x.len() as f32 + eps).sqrt();
    let shift = if plus_one { 1.0 } else { 0.0 };
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * factor * (wide(*weight) + shift);
    }
}

#[inline(always)]
fn wide(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

#[inline(always)]
fn widen_body(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = wide(*from);
    }
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
fn add_scaled_body(x: &mut [f32], y: &[f32], by: f32) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y * by;
    }
}

/// In 16 sums, so that additions do not wait for each other.
#[inline(always)]
fn dot_body(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a_whole, a_rest) = a.as_chunks::<16>();
    let (b_whole, b_rest) = b.as_chunks::<16>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// act(gate) · up
pub(super) fn gated(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let by = |activate: fn(f32) -> f32, out: &mut [f32]| {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = activate(*gate) * up;
        }
    };
    match activation {
        Activation::Silu => silu(gate, up, out),
        Activation::GeluTanh => by(gelu_tanh, out),
        Activation::Gelu => by(gelu, out),
        Activation::Relu => by(|x| x.max(0.0), out),
    }
}

#[inline(always)]
fn silu_body(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// √(2/π)·(x + 0.044715·x³) through tanh, which is 1 − 2/(e^2z + 1).
fn gelu_tanh(x: f32) -> f32 {
    let z = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    let tanh = 1.0 - 2.0 / (exp(2.0 * z) + 1.0);
    0.5 * x * (1.0 + tanh)
}

/// With erf by Abramowitz and Stegun 7.1.26, within 1.5e-7.
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_8) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let erf = (1.0 - poly * exp(-z * z)).copysign(x);
    0.5 * x * (1.0 + erf)
}

/// eˣ within 2 units in the last place, without a branch, so that loops over it become vector code: 2ⁿ·eʳ with
/// |r| ≤ ln 2 / 2 and eʳ by its series. Not-a-number stays.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0; // the nearest integer in the low bits
    let n = shifted - 12_582_912.0;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let poly = 1.0 / 720.0;
    let poly = poly * r + 1.0 / 120.0;
    let poly = poly * r + 1.0 / 24.0;
    let poly = poly * r + 1.0 / 6.0;
    let poly = poly * r + 0.5;
    let poly = poly * r + 1.0;
    let poly = poly * r + 1.0;
    // Bits of the integer plus the exponent's bias, shifted into place.
    poly * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[inline(always)]
fn softmax_body(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let mut sums = [0f32; 8];
    let (whole, rest) = scores.as_chunks::<8>();
    for part in whole {
        for (sum, value) in sums.iter_mut().zip(part) {
            *sum += value;
        }
    }
    let factor = 1.0 / (sums.iter().sum::<f32>() + rest.iter().sum::<f32>());
    for score in scores.iter_mut() {
        *score *= factor;
    }
}

/// cos and sin of the rotary angles of each row.
pub(super) struct Angles {
    half: usize,
    cos: Vec<f32>, // [N, Dh/2]
    sin: Vec<f32>,
}

impl Angles {
    /// `inverse_frequencies` [Dh/2] in f32
    pub fn new(inverse_frequencies: &Tensor, places: &[usize]) -> Self {
        let frequencies = Vec::<f32>::try_from(inverse_frequencies).unwrap_or_else(|error| panic!("{error}"));
        let angles = places.iter().flat_map(|place| frequencies.iter().map(move |f| *place as f32 * f));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { half: frequencies.len(), cos, sin }
    }

    /// RoFormer (arXiv 2104.09864 §3.4.2) in the half-split layout: pairs are (i, i + Dh/2).
    pub fn turn(&self, row: usize, head: &mut [f32]) {
        let part = row * self.half..(row + 1) * self.half;
        let (first, second) = head.split_at_mut(self.half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(&self.cos[part.clone()]).zip(&self.sin[part]) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> impl Iterator<Item = f32> {
        (-4000..4000).map(|i| i as f32 * 0.02)
    }

    #[test]
    fn exponentials_are_those_of_the_library() {
        for x in grid() {
            let (own, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((own - exact).abs() <= 3e-7 * exact, "{x}: {own} and {exact}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn activations_are_those_of_libtorch() {
        let values: Vec<f32> = grid().collect();
        let (ones, mut out) = (vec![1f32; values.len()], vec![0f32; values.len()]);
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu] {
            gated(activation, &values, &ones, &mut out);
            let theirs = Vec::<f32>::try_from(activation.apply(&Tensor::from_slice(&values))).expect("values");
            for ((x, own), theirs) in values.iter().zip(&out).zip(theirs) {
                assert!((own - theirs).abs() <= 2e-6 * (1.0 + theirs.abs()), "{activation:?} {x}: {own} and {theirs}");
            }
        }
    }

    #[test]
    fn weights_of_a_softmax_sum_to_one_and_no_number_spoils_them() {
        let mut scores: Vec<f32> = grid().take(101).collect();
        softmax(&mut scores);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let mut spoiled = [1.0, f32::NAN, 2.0];
        softmax(&mut spoiled);
        assert!(spoiled.iter().any(|score| score.is_nan()));
    }
}
