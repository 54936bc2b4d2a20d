//! Prompt tuning (arXiv 2104.08691): virtual tokens before every input are all that learns.

use tailor_domain::PromptTuningSpec;
use tailor_domain::spec::PromptInit;
use tailor_models::{Base, LoraSet};
use tailor_peft::{Adapter, AdapterConfig, PromptEmbeddings, Tensors};
use tch::Tensor;

use crate::error::Error;
use crate::init::Init;
use crate::modules::values;
use crate::optimizer::{AdamW, Initial};

/// The prompt to be trained.
pub struct Prompt {
    config: AdapterConfig,
    tokens: usize,
    /// D.
    width: usize,
    init: PromptInit,
}

impl Prompt {
    /// # Errors
    /// The base has no embedding to look up.
    pub fn choose(base: &Base, spec: &PromptTuningSpec, base_name: &str) -> Result<Self, Error> {
        let width = base.embedding_size();
        let task = base.family().task_type();
        let config = AdapterConfig::prompt_tuning(task, spec.virtual_tokens, width as u32)?.with_base(base_name);
        Ok(Self { config, tokens: spec.virtual_tokens as usize, width, init: spec.init })
    }

    /// The virtual tokens before the first step.
    ///
    /// # Errors
    /// No memory.
    pub fn initial(&self, base: &Base, seed: u64) -> tailor_models::Result<Vec<Initial>> {
        let mut init = Init::new(seed);
        let values = match self.init {
            PromptInit::Vocabulary => {
                values(&base.embed(&init.tokens(self.tokens, base.config().vocab_size() as u32))?)?
            }
            PromptInit::Uniform => init.uniform(self.tokens * self.width, 0.5),
        };
        let shape = vec![self.tokens as i64, self.width as i64];
        Ok(vec![Initial { values, shape, rate: 1.0, frozen_steps: 0 }])
    }

    /// # Errors
    /// The leaf does not fit the base.
    pub fn attach(&self, base: &Base, optimizer: &AdamW) -> tailor_models::Result<LoraSet> {
        let mut set = LoraSet::empty(base);
        let leaf = optimizer.leaves().first().map(Tensor::shallow_clone);
        set.set_prompt(base, leaf.unwrap_or_default())?;
        Ok(set)
    }

    /// # Errors
    /// The values do not fit, or are not finite.
    pub fn adapter(&self, parameters: Vec<Vec<f32>>) -> Result<Adapter, Error> {
        let values = parameters.into_iter().next().unwrap_or_default();
        let prompt = PromptEmbeddings { rows: self.tokens, token_dim: self.width, values };
        let tensors = Tensors { prompt: Some(prompt), ..Tensors::default() };
        Ok(Adapter::with_tensors(self.config.clone(), tensors)?)
    }
}
