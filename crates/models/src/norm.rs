//! Root mean square norm (arXiv 1910.07467): no mean, no bias, the mean square in f32.

use tch::{Kind, Tensor};

use crate::pass::Pass;
use crate::weights::Dense;

/// How the weight scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormScale {
    /// By w, in the compute type.
    Weight,
    /// By 1 + w, in f32 (Gemma).
    OnePlusWeight,
}

pub(crate) struct RmsNorm {
    pub weight: Dense, // [D]
    pub eps: f64,
    pub scale: NormScale,
}

impl RmsNorm {
    /// # Shapes
    /// `x` [.., D] → [.., D]
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Tensor {
        pass.with(&self.weight, x, |x, weight| self.scaled(x, weight))
    }

    fn scaled(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        if tailor_torch::fused(x) && x.kind() == weight.kind() && !weight.requires_grad() {
            let one_plus = self.scale == NormScale::OnePlusWeight;
            return tailor_torch::rms_norm(x, weight, self.eps, one_plus).unwrap_or_else(|error| panic!("{error}"));
        }
        let wide = x.to_kind(Kind::Float);
        let mean_square = wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
        let normed = wide * (mean_square + self.eps).rsqrt();
        // Back to the compute type before or after the weight, as the reference does: the order shows in bf16.
        match self.scale {
            NormScale::Weight => normed.to_kind(x.kind()) * weight,
            NormScale::OnePlusWeight => (normed * (weight.to_kind(Kind::Float) + 1.0)).to_kind(x.kind()),
        }
    }
}
