//! From a PEFT adapter to what a pass runs with.

use std::collections::BTreeMap;

use safetensors::Dtype;
use tailor_peft::{Adapter, BaseShapes, LinearShape, Tensors};
use tch::{Kind, Tensor};

use crate::linear::Weight;
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

impl Base {
    /// Whether the head is the embedding.
    fn is_tied(&self) -> bool {
        !self.parameters().iter().any(|parameter| parameter.name == "lm_head.weight")
    }

    /// Whether the linear layer's weight of this name has just these values.
    fn has_weight(&self, name: &str, values: &Tensor) -> Result<bool> {
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
        for (path, whole) in whole {
            let kind = match whole.dtype {
                Dtype::BF16 => Kind::BFloat16,
                Dtype::F16 => Kind::Half,
                _ => Kind::Float,
            };
            let shape: Vec<i64> = whole.shape.iter().map(|side| *side as i64).collect();
            let stored = Tensor::f_from_data_size(&whole.bytes, &shape, kind)?;
            let own = stored.f_to_kind(base.compute().kind())?.f_to_device(base.device())?;
            // PEFT saves the head's weight beside LoRA on it, changed or not.
            if path.strip_suffix(".weight").is_some_and(|module| pairs.contains_key(module)) {
                if base.has_weight(path, &own)? {
                    continue;
                }
                if base.is_tied() {
                    let problem = "differs from the base's, which is its embedding as well; PEFT would change both";
                    return Err(Error::Adapter(format!("{path} {problem}")));
                }
            }
            set.replace(path, own)?;
        }
        for (path, magnitude) in magnitudes {
            set.insert_magnitude(base, path, tensor(magnitude, &[-1])?)?;
        }
        for (path, bias) in lora_biases {
            set.insert_lora_bias(path, tensor(bias, &[-1])?)?;
        }
        if let Some((tokens, values)) = adapter.prompt() {
            set.set_prompt(base, tensor(values, &[tokens as i64, -1])?)?;
        }
        if set.changes_nothing() {
            let problem = "the adapter changes nothing: its magnitudes are the lengths of the base's own rows; it was \
                           saved before it was trained";
            return Err(Error::Adapter(problem.into()));
        }
        Ok(set)
    }
}
