//! A projection: dense or in 4 bits, with LoRA where the pass brings some for its path.

use tailor_domain::Invalid;
use tailor_quant::Float;
use tailor_torch::device::{DeviceWeight, MAX_GROUP, device_project};
use tailor_torch::{Factors, Projection, ProjectionWeight, QuantWeight};
use tch::{Kind, Tensor};

use crate::chain::Run;
use crate::change::Change;
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
    /// In 4 bits on a device that has kernels.
    OnDevice(DeviceWeight),
}

impl Weight {
    /// Another handle on the same values.
    pub fn share(&self) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(weight.shallow_clone()),
            Self::FourBit(weight) => Self::FourBit(weight.clone()),
            Self::OnDevice(weight) => Self::OnDevice(weight.clone()),
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

    /// As [`Self::forward`] where nothing that looks at the output's values follows in the layer: they are neither made for a
    /// gradient alone nor kept for it, unless what the pass adds looks at them.
    pub fn forward_for(&self, run: Run, x: &Tensor, pass: &Pass<'_>) -> Tensor {
        let is_seen = match &pass.adapters {
            Adapters::None => false,
            Adapters::One(set) => set.change(self.slot).is_some_and(Change::looks_at_values),
            Adapters::Rows(_) => true,
        };
        match run {
            Run::Recorded | Run::Gradient if !is_seen => tailor_torch::without_values(|| self.forward(x, pass)),
            Run::Recorded | Run::Gradient | Run::Values => self.forward(x, pass),
        }
    }

    /// The base's own.
    pub fn plain(&self, x: &Tensor) -> Tensor {
        match (&self.weight, self.constant()) {
            (Weight::OnDevice(weight), _) => self.biased(on_device(x, &[(weight, None)]).remove(0)),
            (_, Some(weight)) => {
                together(x, &[Projection { weight, bias: self.bias.as_ref(), lora: None }]).swap_remove(0)
            }
            (Weight::Dense(weight), None) => x.linear(weight, self.bias.as_ref()),
            (Weight::FourBit(_), None) => unreachable!("a weight in 4 bits is always a constant"),
        }
    }

    fn biased(&self, y: Tensor) -> Tensor {
        match &self.bias {
            Some(bias) => y + bias,
            None => y,
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
            Weight::FourBit(_) | Weight::OnDevice(_) => None,
        }
    }

    /// The weight for [`tailor_torch::project`], where it is not trained itself and no kernel of our own takes it.
    fn constant(&self) -> Option<ProjectionWeight<'_>> {
        match &self.weight {
            Weight::FourBit(weight) => Some(ProjectionWeight::FourBit(weight)),
            Weight::Dense(weight) => {
                (tailor_torch::fused(weight) && !weight.requires_grad()).then_some(ProjectionWeight::Dense(weight))
            }
            Weight::OnDevice(_) => None,
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

/// Layers that take the same input, q, k and v or gate and up, in one go where all of them allow it: on the CPU with what
/// LoRA adds; where kernels are, one dequantises all their weights, and one product serves all.
///
/// # Shapes
/// `x` [B, T, in] → for each [B, T, out]
pub(crate) fn project<const N: usize>(layers: [&Linear; N], x: &Tensor, pass: &Pass<'_>) -> [Tensor; N] {
    const { assert!(N <= MAX_GROUP, "one launch takes no more weights") };
    let projections: Option<Vec<_>> = layers.iter().map(|layer| layer.projection(pass)).collect();
    if let Some(Ok(all)) = projections.map(|projections| <[Tensor; N]>::try_from(together(x, &projections))) {
        return all;
    }
    let set = match &pass.adapters {
        Adapters::None => None,
        Adapters::One(set) => Some(set),
        Adapters::Rows(routes) => return layers.map(|layer| routes.forward(layer, x)),
    };
    let weights: Vec<&DeviceWeight> = layers
        .iter()
        .filter_map(|layer| match &layer.weight {
            Weight::OnDevice(weight) => Some(weight),
            Weight::Dense(_) | Weight::FourBit(_) => None,
        })
        .collect();
    if weights.len() < N {
        return layers.map(|layer| match set.and_then(|set| set.change(layer.slot)) {
            None => layer.plain(x),
            Some(change) => change.forward(layer, x, pass.training),
        });
    }
    let change = |layer: &Linear| set.and_then(|set| set.change(layer.slot));
    // What is no more than LoRA on the same input goes along with the product.
    let loras = layers.map(|layer| change(layer).and_then(|change| change.plain_lora(pass.training)));
    let on: Vec<_> = weights.into_iter().zip(loras).collect();
    let mut products = on_device(x, &on).into_iter().zip(&loras);
    layers.map(|layer| match products.next() {
        Some((y, Some(_))) => layer.biased(y),
        Some((y, None)) => {
            let y = layer.biased(y);
            change(layer).map_or_else(|| y.shallow_clone(), |change| change.add_to(layer, &y, x, pass.training))
        }
        None => layer.plain(x),
    })
}

fn together(x: &Tensor, projections: &[Projection<'_>]) -> Vec<Tensor> {
    tailor_torch::project(x, projections).unwrap_or_else(|error| panic!("{error}"))
}

fn on_device(x: &Tensor, layers: &[(&DeviceWeight, Option<Factors<'_>>)]) -> Vec<Tensor> {
    device_project(x, layers).unwrap_or_else(|error| panic!("{error}"))
}
