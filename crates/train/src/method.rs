//! What learns: pairs of matrices beside linear layers, or virtual tokens before the input.

use tailor_domain::{Invalid, Recipe};
use tailor_models::{Base, LoraSet};
use tailor_peft::{Adapter, layer_number};

use crate::error::Error;
use crate::modules::{Modules, Taken};
use crate::optimizer::{AdamW, Initial};
use crate::prompt::Prompt;

pub enum Method {
    Lora(Modules),
    Prompt(Prompt),
}

impl Method {
    /// # Errors
    /// A name, pattern or layer number that no linear layer of the base answers to.
    pub fn choose(base: &Base, recipe: &Recipe, base_name: &str) -> Result<Self, Error> {
        Ok(match recipe.prompt_tuning.is_on() {
            true => Self::Prompt(Prompt::choose(base, &recipe.prompt_tuning, base_name)?),
            false => Self::Lora(Modules::choose(base, &recipe.lora, base_name)?),
        })
    }

    /// The parameters before the first step, and what they take off the base; None where `should_stop` said so before all
    /// were made. `frozen_steps` says for a module how long it stays as it is.
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
        match self {
            Self::Lora(modules) => modules.initial(base, seed, frozen_steps, should_stop),
            Self::Prompt(prompt) => Ok(Some((prompt.initial(base, seed)?, Taken::new()))),
        }
    }

    /// The optimizer's leaves in the places where a pass finds them.
    ///
    /// # Errors
    /// They do not fit the base.
    pub fn attach(&self, base: &Base, optimizer: &AdamW, taken: &Taken) -> tailor_models::Result<LoraSet> {
        match self {
            Self::Lora(modules) => modules.attach(base, optimizer, taken),
            Self::Prompt(prompt) => prompt.attach(base, optimizer),
        }
    }

    /// The finished adapter from the values of each parameter, in the order of [`Self::initial`].
    ///
    /// # Errors
    /// The values do not fit, or are not finite.
    pub fn adapter(&self, parameters: Vec<Vec<f32>>, taken: &Taken) -> Result<Adapter, Error> {
        match self {
            Self::Lora(modules) => modules.adapter(parameters, taken),
            Self::Prompt(prompt) => prompt.adapter(parameters),
        }
    }

    /// The modules that learn with their sizes (in, out), which a checkpoint is held to.
    pub fn shapes(&self) -> Vec<(&str, usize, usize)> {
        match self {
            Self::Lora(modules) => {
                modules.shapes.iter().map(|(path, at)| (path.as_str(), at.in_features, at.out_features)).collect()
            }
            Self::Prompt(_) => Vec::new(), // the recipe says all
        }
    }

    /// Some layer must learn from the first step on, and each one named must be there. `frozen_steps` as in
    /// [`Self::initial`].
    ///
    /// # Errors
    /// The stage that names another layer, or none is left.
    pub fn check_unfreezing(&self, recipe: &Recipe, frozen_steps: impl Fn(&str) -> u64) -> Result<(), Invalid> {
        let Self::Lora(modules) = self else { return Ok(()) }; // the recipe allows no stage
        for (at, stage) in recipe.train.unfreeze.iter().enumerate() {
            for layer in &stage.layers {
                if !modules.shapes.keys().any(|path| layer_number(path) == Some(*layer)) {
                    let problem = format!("layer {layer} has no module that is trained");
                    return Err(Invalid::new(format!("train.unfreeze[{at}].layers"), problem));
                }
            }
        }
        if modules.shapes.keys().all(|path| frozen_steps(path) > 0) {
            let problem = "no layer learns from the beginning; leave one out, or let its stage begin at 0";
            return Err(Invalid::new("train.unfreeze", problem));
        }
        Ok(())
    }
}
