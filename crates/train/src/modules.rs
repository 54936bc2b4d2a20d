//! Which linear layers of the base get a pair of matrices, what the pairs begin as, and what they are published as.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tailor_domain::LoraSpec;
use tailor_domain::spec::LoraInit;
use tailor_models::{Base, Lora, LoraSet};
use tailor_peft::{Adapter, AdapterConfig, LinearShape, LoraPair, Tensors, decimal};
use tch::{Device, Tensor};

use crate::error::Error;
use crate::init::Init;
use crate::optimizer::{AdamW, Initial};
use crate::pissa;

/// The adapter to be trained: its config and the layers it changes, in the order of their paths.
pub struct Modules {
    pub config: AdapterConfig,
    pub shapes: BTreeMap<String, LinearShape>,
    spec: LoraSpec,
}

/// What an initialisation takes off the base, by module: A and B.
pub type Taken = BTreeMap<String, (Tensor, Tensor)>;

impl Modules {
    /// # Errors
    /// A name, pattern or layer number that no linear layer of the base answers to.
    pub fn choose(base: &Base, spec: &LoraSpec, base_name: &str) -> Result<Self, Error> {
        let linears = shapes(base);
        let paths: Vec<&str> = linears.keys().map(String::as_str).collect();
        let config = AdapterConfig::of_job(base.family().task_type(), spec, &paths)?.with_base(base_name);
        let shapes = linears.into_iter().filter(|(path, _)| config.targets(path)).collect();
        Ok(Self { config, shapes, spec: spec.clone() })
    }

    /// The parameters before the first step, module after module: A, B, then the magnitude and the bias where there are
    /// such; None where `should_stop` said so before all were made. `frozen_steps` says for a module how long it stays as it is.
    ///
    /// # Errors
    /// A decomposition fails; no memory.
    pub fn initial(
        &self,
        base: &Base,
        seed: u64,
        frozen_steps: impl Fn(&str) -> u64,
        should_stop: &mut dyn FnMut() -> bool,
    ) -> tailor_models::Result<Option<(Vec<Initial>, Taken)>> {
        let mut init = Init::new(seed);
        let (mut all, mut taken) = (Vec::new(), Taken::new());
        for (path, &LinearShape { in_features, out_features }) in &self.shapes {
            // A decomposition takes seconds where the layers are large, and so do the lengths of all rows.
            if (self.spec.init == LoraInit::Pissa || self.config.use_dora) && should_stop() {
                return Ok(None);
            }
            let rank = self.config.rank_for(path) as usize;
            let (a, b) = match self.spec.init {
                LoraInit::Default => (init.lora_a(rank, in_features), init.lora_b(out_features, rank)),
                LoraInit::Pissa => {
                    let weight = base.dense_weight(path).ok_or_else(|| missing(path))?;
                    let (a, b) = pissa::principal(&weight, rank as i64, self.config.scale_for(path), seed)?;
                    let values = (values(&a)?, values(&b)?);
                    taken.insert(path.clone(), (a, b));
                    values
                }
            };
            let frozen_steps = frozen_steps(path);
            let mut push = |values: Vec<f32>, shape: Vec<i64>, rate: f64| {
                all.push(Initial { values, shape, rate, frozen_steps });
            };
            let (rank, input, out) = (rank as i64, in_features as i64, out_features as i64);
            // LoRA+ §4 sets B's rate; what else stands on B's side goes with it, as in PEFT.
            let rate = self.spec.plus_ratio;
            push(a, vec![rank, input], 1.0);
            push(b, vec![out, rank], rate);
            if self.config.use_dora {
                push(values(&LoraSet::row_lengths(base, path)?)?, vec![out], rate);
            }
            if self.config.lora_bias {
                push(vec![0.0; out_features], vec![out], rate);
            }
        }
        Ok(Some((all, taken)))
    }

    /// The optimizer's leaves under their modules' paths.
    ///
    /// # Errors
    /// They do not fit the base.
    pub fn attach(&self, base: &Base, optimizer: &AdamW, taken: &Taken) -> tailor_models::Result<LoraSet> {
        let mut set = LoraSet::empty(base);
        let mut leaves = optimizer.leaves().iter().map(Tensor::shallow_clone);
        let mut next = |path: &str| leaves.next().ok_or_else(|| missing(path));
        for path in self.shapes.keys() {
            let scale = self.config.scale_for(path);
            let (a, b) = (next(path)?, next(path)?);
            set.insert(path, Lora { a, b, scale, dropout: f64::from(self.spec.dropout) })?;
            if self.config.use_dora {
                set.insert_magnitude(base, path, next(path)?)?;
            }
            if self.config.lora_bias {
                set.insert_lora_bias(path, next(path)?)?;
            }
            if let Some((a, b)) = taken.get(path) {
                let (a, b) = (a.shallow_clone(), b.shallow_clone());
                set.insert_frozen(path, Lora { a, b, scale: -scale, dropout: 0.0 })?;
            }
        }
        Ok(set)
    }

    /// The finished adapter from the values of each parameter, in the order of [`Self::initial`].
    ///
    /// # Errors
    /// The values do not fit, or are not finite.
    pub fn adapter(&self, parameters: Vec<Vec<f32>>, taken: &Taken) -> Result<Adapter, Error> {
        let mut parameters = parameters.into_iter();
        let mut next = || parameters.next().unwrap_or_default();
        let mut tensors = Tensors::default();
        for (path, &LinearShape { in_features, out_features }) in &self.shapes {
            let rank = self.config.rank_for(path) as usize;
            let pair = LoraPair { a: next(), b: next(), rank, in_features, out_features };
            let pair = match taken.get(path) {
                None => pair,
                Some((a, b)) => beside(
                    pair,
                    &values(a).map_err(Error::at("after the last step"))?,
                    &values(b).map_err(Error::at("after the last step"))?,
                ),
            };
            tensors.pairs.insert(path.clone(), pair);
            if self.config.use_dora {
                tensors.magnitudes.insert(path.clone(), next());
            }
            if self.config.lora_bias {
                tensors.lora_biases.insert(path.clone(), next());
            }
        }
        let config = match taken.is_empty() {
            true => self.config.clone(),
            false => self.config.clone().with_fields(self.doubled())?,
        };
        Ok(Adapter::with_tensors(config, tensors)?)
    }

    /// Twice the ranks at the same scale.
    fn doubled(&self) -> Map<String, Value> {
        let growth = if self.spec.rslora { f64::sqrt(2.0) } else { 2.0 };
        let alpha = |alpha: f32| decimal(alpha) * growth;
        let ranks: Map<_, _> = self.spec.rank_pattern.iter().map(|(key, r)| (key.clone(), (2 * r).into())).collect();
        let alphas: Map<_, _> =
            self.spec.alpha_pattern.iter().map(|(key, value)| (key.clone(), alpha(*value).into())).collect();
        object(json!({
            "r": 2 * self.spec.rank, "lora_alpha": alpha(self.spec.alpha),
            "rank_pattern": ranks, "alpha_pattern": alphas,
        }))
    }
}

/// `pair` with the columns and rows of what was taken off the base beside it: B·A − B₀·A₀.
fn beside(pair: LoraPair, taken_a: &[f32], taken_b: &[f32]) -> LoraPair {
    let LoraPair { mut a, b, rank, in_features, out_features } = pair;
    a.extend_from_slice(taken_a); // [2R, in]
    let mut wide = Vec::with_capacity(2 * b.len());
    for (own, taken) in b.chunks_exact(rank).zip(taken_b.chunks_exact(rank)) {
        wide.extend_from_slice(own);
        wide.extend(taken.iter().map(|value| -value)); // [out, 2R]
    }
    LoraPair { a, b: wide, rank: 2 * rank, in_features, out_features }
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(fields) = value { fields } else { Map::new() }
}

/// Every linear layer, the head too.
fn shapes(base: &Base) -> BTreeMap<String, LinearShape> {
    let shape = |linear: &tailor_models::LinearInfo| LinearShape {
        in_features: linear.in_features as usize,
        out_features: linear.out_features as usize,
    };
    base.linears_with_head().iter().map(|linear| (linear.path.clone(), shape(linear))).collect()
}

fn missing(path: &str) -> tailor_models::Error {
    tailor_models::Error::Adapter(format!("{path}: the base has no such layer"))
}

pub(crate) fn values(tensor: &Tensor) -> tailor_models::Result<Vec<f32>> {
    Ok(Vec::try_from(&tensor.f_detach()?.f_to_device(Device::Cpu)?.f_reshape([-1])?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_off_stands_beside_with_its_sign_turned() {
        let pair = LoraPair { a: vec![1.0, 2.0], b: vec![3.0, 4.0, 5.0], rank: 1, in_features: 2, out_features: 3 };
        let wide = beside(pair, &[10.0, 20.0], &[30.0, 40.0, 50.0]);
        assert_eq!((wide.a.as_slice(), wide.rank), ([1.0, 2.0, 10.0, 20.0].as_slice(), 2));
        assert_eq!(wide.b, [3.0, -30.0, 4.0, -40.0, 5.0, -50.0]);
    }
}
