//! A step of AdamW in one launch.

use std::ptr;

use tch::Tensor;

use crate::{Result, ffi};

/// One step of AdamW: what counts for all values, or for each.
pub struct AdamStep<'a> {
    /// f32 [n], changed in place.
    pub values: &'a Tensor,
    pub gradient: &'a Tensor,
    pub gradient_scale: f64,
    pub betas: (f64, f64),
    pub epsilon: f64,
    pub factors: AdamFactors<'a>,
}

/// `rate` is the learning rate over the first moment's correction, `correction` the second moment's, `decay` what a value
/// is multiplied with. Tensors are f32 [n].
pub enum AdamFactors<'a> {
    Same { rate: f64, correction: f64, decay: f64 },
    Each { rates: &'a Tensor, corrections: &'a Tensor, decays: &'a Tensor },
}

impl AdamStep<'_> {
    fn raw(&self) -> ffi::Step {
        let mut step = ffi::Step {
            values: ffi::handle(self.values),
            gradient: ffi::handle(self.gradient),
            rates: ptr::null(),
            corrections: ptr::null(),
            decays: ptr::null(),
            gradient_scale: self.gradient_scale,
            beta1: self.betas.0,
            beta2: self.betas.1,
            epsilon: self.epsilon,
            rate: 0.0,
            correction: 1.0,
            decay: 1.0,
        };
        match &self.factors {
            AdamFactors::Same { rate, correction, decay } => {
                (step.rate, step.correction, step.decay) = (*rate, *correction, *decay);
            }
            AdamFactors::Each { rates, corrections, decays } => {
                [step.rates, step.corrections, step.decays] =
                    [rates, corrections, decays].map(|each| ffi::handle(each));
            }
        }
        step
    }
}

/// Moments in f32 [n], changed in place with the values, by one launch.
///
/// # Errors
/// Lengths or types that do not fit.
pub fn adamw(step: &AdamStep<'_>, first: &Tensor, second: &Tensor) -> Result<()> {
    // SAFETY: all handles are alive during the call.
    ffi::check(unsafe { ffi::tailor_adamw(&step.raw(), ffi::handle(first), ffi::handle(second)) })
}

/// A moment in 8 bits: codes u8 [n], scales f32 [ceil(n/256)], map f32 [256] ascending, middles f32 [255].
pub struct Moment8<'a> {
    pub codes: &'a Tensor,
    pub scales: &'a Tensor,
    pub map: &'a Tensor,
    pub middles: &'a Tensor,
}

/// As [`adamw`] with both moments in 8 bits.
///
/// # Errors
/// Lengths or types that do not fit.
pub fn adamw8(step: &AdamStep<'_>, first: &Moment8<'_>, second: &Moment8<'_>) -> Result<()> {
    let raw = |moment: &Moment8<'_>| {
        let [codes, scales, map, middles] = [moment.codes, moment.scales, moment.map, moment.middles].map(ffi::handle);
        ffi::MomentTensors { codes, scales, map, middles }
    };
    // SAFETY: all handles are alive during the call.
    ffi::check(unsafe { ffi::tailor_adamw8(&step.raw(), &raw(first), &raw(second)) })
}
