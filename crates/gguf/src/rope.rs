//! Llama 3.1's positions as llama.cpp takes them: a factor for each pair of a head, by which its frequency is divided.

use std::f64::consts::TAU;

use crate::config::{Rotary, RotaryScaling};

/// The tensor that holds them.
pub(crate) const NAME: &str = "rope_freqs.weight";

/// For a head of `head_dim` values, head_dim/2 factors: 1 for short wavelengths, `factor` for long ones, and between them
/// what interpolates the frequency linearly in original/wavelength (transformers' `_compute_llama3_parameters`).
pub(crate) fn factors(rotary: &Rotary, head_dim: u32) -> Option<Vec<f32>> {
    let Some(RotaryScaling::Llama3 { factor, low, high, original }) = rotary.scaling else { return None };
    let one = |pair: u32| {
        let wavelength = TAU * rotary.theta.powf(f64::from(2 * pair) / f64::from(head_dim));
        if wavelength < original / high {
            return 1.0;
        }
        if wavelength > original / low {
            return factor as f32;
        }
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    Some((0..head_dim / 2).map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_wavelengths_stay_long_ones_are_divided_and_those_between_pass_smoothly() {
        let scaling = RotaryScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let factors = factors(&Rotary { theta: 500_000.0, scaling: Some(scaling) }, 128).unwrap();
        assert_eq!(factors.len(), 64);
        assert_eq!((factors[0], factors[63]), (1.0, 8.0));
        assert!(factors.is_sorted(), "{factors:?}");
        assert!(factors.iter().any(|factor| *factor > 1.0 && *factor < 8.0));
    }

    #[test]
    fn other_positions_need_no_factors() {
        assert_eq!(factors(&Rotary { theta: 1e4, scaling: Some(RotaryScaling::Linear { factor: 2.0 }) }, 64), None);
    }
}
