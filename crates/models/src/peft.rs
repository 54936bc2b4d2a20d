//! From a PEFT adapter to the factors that a pass runs with.

use std::collections::BTreeMap;

use tailor_peft::{Adapter, LinearShape};
use tch::Tensor;

use crate::lora::{Lora, LoraSet};
use crate::{Base, Error, Result};

impl Base {
    /// The linear layers as adapters see them.
    pub fn linear_shapes(&self) -> BTreeMap<String, LinearShape> {
        let shape = |linear: &crate::LinearInfo| LinearShape {
            in_features: linear.in_features as usize,
            out_features: linear.out_features as usize,
        };
        self.linears().iter().map(|linear| (linear.path.clone(), shape(linear))).collect()
    }
}

impl LoraSet {
    /// The adapter on the base's device, in f32, for inference.
    ///
    /// # Errors
    /// It does not fit the base, or would change nothing there.
    pub fn from_adapter(base: &Base, adapter: &Adapter) -> Result<Self> {
        adapter.check_against(&base.linear_shapes()).map_err(|error| Error::Adapter(error.to_string()))?;
        let mut set = Self::empty(base);
        for (path, pair) in adapter.pairs() {
            let (rank, input, out) = (pair.rank as i64, pair.in_features as i64, pair.out_features as i64);
            let tensor = |values: &[f32], shape: [i64; 2]| -> Result<Tensor> {
                Ok(Tensor::f_from_slice(values)?.f_view(shape)?.f_to_device(base.device())?)
            };
            let (a, b) = (tensor(&pair.a, [rank, input])?, tensor(&pair.b, [out, rank])?);
            set.insert(path, Lora { a, b, scale: adapter.scale_for(path), dropout: 0.0 })?;
        }
        Ok(set)
    }
}
