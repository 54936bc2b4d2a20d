//! Loss and gradient of one batch for an adapter as it is, without a step: what other implementations are compared with.

use std::collections::BTreeMap;

use tailor_domain::Recipe;
use tailor_models::{Base, LoraSet};
use tailor_torch::guarded;
use tch::Device;

use crate::error::Error;
use crate::examples::Examples;
use crate::loss::Sum;
use crate::objective::{Objective, Whole};

#[derive(Debug, Clone, PartialEq)]
pub struct Gradient {
    pub loss: f64,
    /// Row-major, by the names of [`LoraSet::parameters`].
    pub by_parameter: BTreeMap<String, Vec<f32>>,
}

/// All rows are one batch and one pass. Of the recipe count what decides the loss: objective, preference, checkpointing.
///
/// # Errors
/// The adapter does not fit the base; a failure of the device.
pub fn gradient<'a>(
    base: &Base,
    recipe: &Recipe,
    adapter: &tailor_peft::Adapter,
    examples: impl Into<Examples<'a>>,
) -> Result<Gradient, Error> {
    let examples = examples.into();
    let rows: Vec<u32> = (0..examples.len() as u32).collect();
    let loaded = examples.load(rows.chunks(1))?;
    guarded(|| {
        let set = LoraSet::from_adapter(base, adapter)?;
        let parameters = set.parameters();
        for (_, parameter) in &parameters {
            let _ = parameter.f_set_requires_grad(true)?;
        }
        let objective = Objective {
            base,
            adapter: &set,
            checkpointing: recipe.train.checkpointing,
            noise: 0.0,
            preference: &recipe.preference,
        };
        let whole = Whole::of(&examples, 0..examples.len());
        let added = objective.accumulate(&objective.prepare(&loaded)?, whole)?;
        let loss = Sum::read(&[added])?.into_iter().sum();
        let mut by_parameter = BTreeMap::new();
        for (name, parameter) in parameters {
            let gradient = parameter.f_grad()?.f_to_device(Device::Cpu)?.f_reshape([-1])?;
            by_parameter.insert(name, Vec::<f32>::try_from(&gradient)?);
        }
        Ok(Gradient { loss, by_parameter })
    })
    .map_err(Error::at("gradient of one batch"))
}
