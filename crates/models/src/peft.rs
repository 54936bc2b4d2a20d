//! From a PEFT adapter to what a pass runs with.

use std::collections::BTreeMap;

use safetensors::Dtype;
use tailor_peft::{Adapter, BaseShapes, LinearShape, Tensors};
use tch::{Kind, Tensor};

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

    /// Everything that an adapter can change.
    pub fn shapes(&self) -> BaseShapes {
        let sides = |tensor: &Tensor| tensor.size().into_iter().map(|side| side as usize).collect();
        let tensors = self.parameters().iter().map(|parameter| (parameter.name.clone(), sides(&parameter.tensor)));
        BaseShapes::new(self.linear_shapes(), tensors.collect())
    }
}

impl LoraSet {
    /// The adapter on the base's device, for inference: A, B and what belongs to them in f32, whole tensors in the type
    /// that the base computes in.
    ///
    /// # Errors
    /// It does not fit the base, or would change nothing there.
    pub fn from_adapter(base: &Base, adapter: &Adapter) -> Result<Self> {
        adapter.check_against(&base.shapes()).map_err(|error| Error::Adapter(error.to_string()))?;
        let mut set = Self::empty(base);
        let Tensors { pairs, magnitudes, lora_biases, whole, .. } = adapter.tensors();
        let tensor = |values: &[f32], shape: &[i64]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(values)?.f_view(shape)?.f_to_device(base.device())?)
        };
        for (path, pair) in pairs {
            let (rank, input, out) = (pair.rank as i64, pair.in_features as i64, pair.out_features as i64);
            let (a, b) = (tensor(&pair.a, &[rank, input])?, tensor(&pair.b, &[out, rank])?);
            set.insert(path, Lora { a, b, scale: adapter.scale_for(path), dropout: 0.0 })?;
        }
        for (path, magnitude) in magnitudes {
            set.insert_magnitude(base, path, tensor(magnitude, &[-1])?)?;
        }
        for (path, bias) in lora_biases {
            set.insert_lora_bias(path, tensor(bias, &[-1])?)?;
        }
        for (path, whole) in whole {
            let kind = match whole.dtype {
                Dtype::BF16 => Kind::BFloat16,
                Dtype::F16 => Kind::Half,
                _ => Kind::Float,
            };
            let shape: Vec<i64> = whole.shape.iter().map(|side| *side as i64).collect();
            let stored = Tensor::f_from_data_size(&whole.bytes, &shape, kind)?;
            set.replace(path, stored.f_to_kind(base.compute().kind())?.f_to_device(base.device())?)?;
        }
        if set.changes_nothing() {
            let problem = "the adapter changes nothing: its magnitudes are the lengths of the base's own rows; it was \
                           saved before it was trained";
            return Err(Error::Adapter(problem.into()));
        }
        Ok(set)
    }
}
