//! How much memory answers to the held-out rows may take: no more than the plan gave the training that they follow, so that a
//! job which fits to train fits to its end.

use tailor_domain::{QuantCode, Recipe};
use tailor_models::Base;
use tailor_plan::{Device, DeviceKind, Question, Rows, Shape, memory_on};

use crate::error::Result;

pub struct Allowance {
    pub recipe: Recipe,
    pub code: QuantCode,
    pub dtype: String,
    /// That were learnt from.
    pub rows: Rows,
    /// Other jobs have turns between two tokens of an answer, and count on what only one needs at a time.
    pub shares: bool,
}

impl Allowance {
    /// Bytes beside base and adapter, after training with passes of this many sequences.
    ///
    /// # Errors
    /// The base's config.json cannot be planned for.
    pub fn bytes(&self, base: &Base, micro_batch: usize) -> Result<u64> {
        let kind = if base.device().is_cuda() { DeviceKind::Gpu } else { tailor_train::host().kind };
        self.bytes_on(&Shape::parse(base.config_text())?, kind, micro_batch)
    }

    fn bytes_on(&self, shape: &Shape, kind: DeviceKind, micro_batch: usize) -> Result<u64> {
        let mut recipe = self.recipe.clone();
        recipe.train.micro_batch_rows = u32::try_from(micro_batch.max(1)).unwrap_or(u32::MAX);
        let question = Question {
            shape,
            recipe: &recipe,
            code: self.code,
            dtype: &self.dtype,
            rows: self.rows,
            trainers: &[],
            cards: &[],
            price_per_hour: 0.0,
        };
        // The passes are as large as they were, whatever else would fit.
        let device = Device { name: String::new(), kind, memory_bytes: u64::MAX };
        let memory = memory_on(&question, &device)?;
        Ok(if self.shares { memory.own() } else { memory.for_answers() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowance(shares: bool) -> Allowance {
        let rows =
            Rows { count: 100, tokens: 51_200, longest: 512, longest_input: 512, longest_target: 0, most_labels: 512 };
        Allowance { recipe: Recipe::default(), code: QuantCode::Nf4, dtype: "bf16".into(), rows, shares }
    }

    #[test]
    fn answers_may_take_what_training_took_and_among_others_what_was_the_jobs_own() {
        let config = r#"{"model_type":"llama","hidden_size":1024,"intermediate_size":2816,"num_hidden_layers":12,
            "num_attention_heads":16,"num_key_value_heads":16,"vocab_size":32000}"#;
        let shape = Shape::parse(config.as_bytes()).expect("a known family");
        let of = |shares, micro| allowance(shares).bytes_on(&shape, DeviceKind::Cpu, micro).expect("planned");
        assert!(of(false, 8) > of(false, 1), "larger passes leave more");
        assert_eq!(of(true, 8), of(true, 1), "moments and gradients hang on no pass");
        assert!(of(true, 8) < of(false, 1));
        assert!(of(false, 1) >= shape.answer_bytes(512, 64, 2), "one row always fits");
    }
}
