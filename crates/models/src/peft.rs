//! From a PEFT adapter to what a pass runs with.

use std::collections::BTreeMap;

use tailor_peft::{Adapter, BaseShapes, LinearShape};
use tch::Tensor;

use crate::linear::Weight;
use crate::lora::{LoraSet, Prepared};
use crate::{Base, Result};

impl Base {
    /// The linear layers as adapters see them.
    pub fn linear_shapes(&self) -> BTreeMap<String, LinearShape> {
        let shape = |linear: &crate::LinearInfo| LinearShape {
            in_features: linear.in_features as usize,
            out_features: linear.out_features as usize,
        };
        self.linears().iter().map(|linear| (linear.path.clone(), shape(linear))).collect()
    }

    /// Everything that an adapter can change.
    pub fn shapes(&self) -> BaseShapes {
        let sides = |tensor: &Tensor| tensor.size().into_iter().map(|side| side as usize).collect();
        let tensors = self.parameters().iter().map(|parameter| (parameter.name.clone(), sides(&parameter.tensor)));
        BaseShapes::new(self.linear_shapes(), tensors.collect())
    }
}

impl Base {
    /// Whether the head is the embedding.
    pub(crate) fn is_tied(&self) -> bool {
        !self.parameters().iter().any(|parameter| parameter.name == "lm_head.weight")
    }

    /// Whether the linear layer's weight of this name has just these values.
    pub(crate) fn has_weight(&self, name: &str, values: &Tensor) -> Result<bool> {
        let (linears, _) = self.places();
        let slot = linears.iter().position(|linear| name.strip_suffix(".weight") == Some(linear.path.as_str()));
        match slot.map(|slot| self.weight(slot)) {
            Some(Weight::Dense(weight)) => Ok(weight.f_equal(values)?),
            Some(Weight::FourBit(_) | Weight::OnDevice(_)) | None => Ok(false),
        }
    }
}

impl LoraSet {
    /// The adapter on the base's device, for inference: A, B and what belongs to them in f32, whole tensors in the type
    /// that the base computes in.
    ///
    /// # Errors
    /// It does not fit the base, or would change nothing there.
    pub fn from_adapter(base: &Base, adapter: &Adapter) -> Result<Self> {
        Prepared::new(&base.outline(), adapter)?.install(base)
    }
}
