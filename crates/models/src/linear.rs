//! A projection: dense or in 4 bits, with LoRA where the pass brings some for its path.

use tailor_domain::Invalid;
use tailor_quant::Float;
use tailor_torch::{Projection, ProjectionWeight, QuantWeight};
use tch::{Kind, Tensor};

use crate::pass::{Adapters, Pass};

/// The type in which activations and dequantised weights live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compute {
    #[default]
    F32,
    Bf16,
}

impl Compute {
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    pub fn float(self) -> Float {
        match self {
            Self::F32 => Float::F32,
            Self::Bf16 => Float::Bf16,
        }
    }
}

impl std::str::FromStr for Compute {
    type Err = Invalid;

    /// As a base's manifest names it: `f32` or `bf16`.
    fn from_str(name: &str) -> Result<Self, Invalid> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            other => Err(Invalid::new("dtype", format!("{other:?} is neither bf16 nor f32"))),
        }
    }
}

/// A linear layer that can take LoRA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearInfo {
    /// Module path, as in the checkpoint without `.weight`.
    pub path: String,
    pub in_features: i64,
    pub out_features: i64,
    /// Whether its weight is in 4 bits.
    pub quantized: bool,
}

pub(crate) enum Weight {
    Dense(Tensor), // [out, in]
    FourBit(QuantWeight),
}

impl Weight {
    /// Another handle on the same values.
    pub fn share(&self) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(weight.shallow_clone()),
            Self::FourBit(weight) => Self::FourBit(weight.clone()),
        }
    }
}

pub(crate) struct Linear {
    pub weight: Weight,
    pub bias: Option<Tensor>, // [out]
    /// Place in the base's list of linear layers: where a [`crate::LoraSet`] keeps what belongs to this one.
    pub slot: usize,
}

impl Linear {
    /// # Shapes
    /// `x` [B, T, in] → [B, T, out]
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Tensor {
        let [y] = project([self], x, pass);
        y
    }

    /// The base's own.
    pub fn plain(&self, x: &Tensor) -> Tensor {
        match self.constant() {
            None => x.linear(self.dense(), self.bias.as_ref()),
            Some(weight) => together(x, &[Projection { weight, bias: self.bias.as_ref(), lora: None }]).swap_remove(0),
        }
    }

    /// The dense weight, where this layer does nothing else in this pass and is not trained.
    pub fn constant_weight(&self, pass: &Pass<'_>) -> Option<&Tensor> {
        let changed = match &pass.adapters {
            Adapters::None => false,
            Adapters::One(set) => set.change(self.slot).is_some(),
            Adapters::Rows(_) => true,
        };
        match &self.weight {
            Weight::Dense(weight) => (!changed && self.bias.is_none() && !weight.requires_grad()).then_some(weight),
            Weight::FourBit(_) => None,
        }
    }

    /// The weight, where it is not trained itself.
    fn constant(&self) -> Option<ProjectionWeight<'_>> {
        match &self.weight {
            Weight::FourBit(weight) => Some(ProjectionWeight::FourBit(weight)),
            Weight::Dense(weight) => (!weight.requires_grad()).then_some(ProjectionWeight::Dense(weight)),
        }
    }

    fn dense(&self) -> &Tensor {
        match &self.weight {
            Weight::Dense(weight) => weight,
            Weight::FourBit(_) => unreachable!("a weight in 4 bits is always a constant"),
        }
    }

    /// With what this pass adds, where that is no more than LoRA on the same input.
    fn projection<'a>(&'a self, pass: &Pass<'a>) -> Option<Projection<'a>> {
        let lora = match &pass.adapters {
            Adapters::None => None,
            Adapters::One(set) => match set.change(self.slot) {
                None => None,
                Some(change) => Some(change.plain_lora(pass.training)?),
            },
            Adapters::Rows(_) => return None,
        };
        Some(Projection { weight: self.constant()?, bias: self.bias.as_ref(), lora })
    }
}

/// Layers of one input, in one go where all of them allow it.
///
/// # Shapes
/// `x` [B, T, in] → for each [B, T, out]
pub(crate) fn project<const N: usize>(layers: [&Linear; N], x: &Tensor, pass: &Pass<'_>) -> [Tensor; N] {
    let projections: Option<Vec<_>> = layers.iter().map(|layer| layer.projection(pass)).collect();
    match projections.map(|projections| <[Tensor; N]>::try_from(together(x, &projections))) {
        Some(Ok(all)) => all,
        _ => layers.map(|layer| match &pass.adapters {
            Adapters::None => layer.plain(x),
            Adapters::One(set) => match set.change(layer.slot) {
                None => layer.plain(x),
                Some(change) => change.forward(layer, x, pass.training),
            },
            Adapters::Rows(routes) => routes.forward(layer, x),
        }),
    }
}

fn together(x: &Tensor, projections: &[Projection<'_>]) -> Vec<Tensor> {
    tailor_torch::project(x, projections).unwrap_or_else(|error| panic!("{error}"))
}
