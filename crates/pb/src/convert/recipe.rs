//! A job's settings: unset fields of the wire take the domain's defaults, and go out filled in.

use tailor_domain::Invalid;
use tailor_domain::spec::{
    EvaluateSpec, LoraSpec, PreferenceSpec, PromptTuningSpec, Recipe, StopSpec, TrainSpec, UnfreezeStage,
};

use super::quant_code;
use crate::training as pb;

/// A name that is not set is the default.
fn named<T: Default + std::str::FromStr<Err = Invalid>>(text: &str) -> Result<T, Invalid> {
    if text.is_empty() { Ok(T::default()) } else { text.parse() }
}

impl TryFrom<pb::Lora> for LoraSpec {
    type Error = Invalid;

    fn try_from(lora: pb::Lora) -> Result<Self, Invalid> {
        let default = Self::default();
        Ok(Self {
            rank: lora.rank.unwrap_or(default.rank),
            alpha: lora.alpha.unwrap_or(default.alpha),
            dropout: lora.dropout.unwrap_or(default.dropout),
            target_modules: lora.target_modules,
            target_regex: lora.target_regex,
            exclude_modules: lora.exclude_modules,
            layers: lora.layers,
            rank_pattern: lora.rank_pattern.into_iter().collect(),
            alpha_pattern: lora.alpha_pattern.into_iter().collect(),
            rslora: lora.rslora,
            dora: lora.dora,
            bias: lora.bias,
            init: named(&lora.init)?,
            plus_ratio: lora.plus_ratio.unwrap_or(default.plus_ratio),
        })
    }
}

impl From<&LoraSpec> for pb::Lora {
    fn from(lora: &LoraSpec) -> Self {
        Self {
            rank: Some(lora.rank),
            alpha: Some(lora.alpha),
            dropout: Some(lora.dropout),
            target_modules: lora.target_modules.clone(),
            target_regex: lora.target_regex.clone(),
            exclude_modules: lora.exclude_modules.clone(),
            layers: lora.layers.clone(),
            rank_pattern: lora.rank_pattern.clone().into_iter().collect(),
            alpha_pattern: lora.alpha_pattern.clone().into_iter().collect(),
            rslora: lora.rslora,
            dora: lora.dora,
            bias: lora.bias,
            init: lora.init.to_string(),
            plus_ratio: Some(lora.plus_ratio),
        }
    }
}

impl TryFrom<pb::Training> for TrainSpec {
    type Error = Invalid;

    fn try_from(train: pb::Training) -> Result<Self, Invalid> {
        let default = Self::default();
        let stage = |stage: pb::UnfreezeStage| UnfreezeStage { from: stage.from, layers: stage.layers };
        Ok(Self {
            objective: named(&train.objective)?,
            loss_on: named(&train.loss_on)?,
            learning_rate: train.learning_rate.unwrap_or(default.learning_rate),
            schedule: named(&train.schedule)?,
            warmup_ratio: train.warmup_ratio.unwrap_or(default.warmup_ratio),
            final_ratio: train.final_ratio.unwrap_or(default.final_ratio),
            optimizer: named(&train.optimizer)?,
            weight_decay: train.weight_decay.unwrap_or(default.weight_decay),
            max_grad_norm: train.max_grad_norm.unwrap_or(default.max_grad_norm),
            epochs: train.epochs.unwrap_or(default.epochs),
            max_steps: train.max_steps.unwrap_or(default.max_steps),
            max_train_tokens: train.max_train_tokens.unwrap_or(default.max_train_tokens),
            batch_rows: train.batch_rows.unwrap_or(default.batch_rows),
            micro_batch_rows: train.micro_batch_rows.unwrap_or(default.micro_batch_rows),
            max_tokens: train.max_tokens.unwrap_or(default.max_tokens),
            grouping: named(&train.grouping)?,
            neftune_alpha: train.neftune_alpha.unwrap_or(default.neftune_alpha),
            checkpointing: named(&train.checkpointing)?,
            precision: named(&train.precision)?,
            quantization: match train.quantization.as_str() {
                "" => None,
                code => Some(quant_code(code).map_err(|error| Invalid::new("train.quantization", error.problem))?),
            },
            unfreeze: train.unfreeze.into_iter().map(stage).collect(),
            seed: train.seed.unwrap_or(default.seed),
            ranks: train.ranks.unwrap_or(default.ranks),
        })
    }
}

impl From<&TrainSpec> for pb::Training {
    fn from(train: &TrainSpec) -> Self {
        let stage = |stage: &UnfreezeStage| pb::UnfreezeStage { from: stage.from, layers: stage.layers.clone() };
        Self {
            objective: train.objective.to_string(),
            loss_on: train.loss_on.to_string(),
            learning_rate: Some(train.learning_rate),
            schedule: train.schedule.to_string(),
            warmup_ratio: Some(train.warmup_ratio),
            final_ratio: Some(train.final_ratio),
            optimizer: train.optimizer.to_string(),
            weight_decay: Some(train.weight_decay),
            max_grad_norm: Some(train.max_grad_norm),
            epochs: Some(train.epochs),
            max_steps: Some(train.max_steps),
            max_train_tokens: Some(train.max_train_tokens),
            batch_rows: Some(train.batch_rows),
            micro_batch_rows: Some(train.micro_batch_rows),
            max_tokens: Some(train.max_tokens),
            grouping: train.grouping.to_string(),
            neftune_alpha: Some(train.neftune_alpha),
            checkpointing: train.checkpointing.to_string(),
            precision: train.precision.to_string(),
            quantization: train.quantization.map(|code| code.as_str().to_owned()).unwrap_or_default(),
            unfreeze: train.unfreeze.iter().map(stage).collect(),
            seed: Some(train.seed),
            ranks: Some(train.ranks),
        }
    }
}

impl From<pb::Evaluation> for EvaluateSpec {
    fn from(evaluation: pb::Evaluation) -> Self {
        let default = Self::default();
        Self {
            tuning_fraction: evaluation.tuning_fraction.unwrap_or(default.tuning_fraction),
            max_tuning_rows: evaluation.max_tuning_rows.unwrap_or(default.max_tuning_rows),
            every_steps: evaluation.every_steps.unwrap_or(default.every_steps),
            max_new_tokens: evaluation.max_new_tokens.unwrap_or(default.max_new_tokens),
            max_validation_rows: evaluation.max_validation_rows.unwrap_or(default.max_validation_rows),
        }
    }
}

impl From<&EvaluateSpec> for pb::Evaluation {
    fn from(evaluate: &EvaluateSpec) -> Self {
        Self {
            tuning_fraction: Some(evaluate.tuning_fraction),
            max_tuning_rows: Some(evaluate.max_tuning_rows),
            every_steps: Some(evaluate.every_steps),
            max_new_tokens: Some(evaluate.max_new_tokens),
            max_validation_rows: Some(evaluate.max_validation_rows),
        }
    }
}

impl From<pb::Stopping> for StopSpec {
    fn from(stopping: pb::Stopping) -> Self {
        let default = Self::default();
        Self {
            target_loss: stopping.target_loss.unwrap_or(default.target_loss),
            patience: stopping.patience.unwrap_or(default.patience),
            min_improvement: stopping.min_improvement.unwrap_or(default.min_improvement),
            keep_best: stopping.keep_best.unwrap_or(default.keep_best),
            max_seconds: stopping.max_seconds.unwrap_or(default.max_seconds),
            max_cost: stopping.max_cost.unwrap_or(default.max_cost),
            price_per_hour: stopping.price_per_hour.unwrap_or(default.price_per_hour),
            spike_factor: stopping.spike_factor.unwrap_or(default.spike_factor),
        }
    }
}

impl From<&StopSpec> for pb::Stopping {
    fn from(stop: &StopSpec) -> Self {
        Self {
            target_loss: Some(stop.target_loss),
            patience: Some(stop.patience),
            min_improvement: Some(stop.min_improvement),
            keep_best: Some(stop.keep_best),
            max_seconds: Some(stop.max_seconds),
            max_cost: Some(stop.max_cost),
            price_per_hour: Some(stop.price_per_hour),
            spike_factor: Some(stop.spike_factor),
        }
    }
}

impl From<pb::Preference> for PreferenceSpec {
    fn from(preference: pb::Preference) -> Self {
        let default = Self::default();
        Self {
            beta: preference.beta.unwrap_or(default.beta),
            label_smoothing: preference.label_smoothing.unwrap_or(default.label_smoothing),
            sft_weight: preference.sft_weight.unwrap_or(default.sft_weight),
        }
    }
}

impl From<&PreferenceSpec> for pb::Preference {
    fn from(preference: &PreferenceSpec) -> Self {
        Self {
            beta: Some(preference.beta),
            label_smoothing: Some(preference.label_smoothing),
            sft_weight: Some(preference.sft_weight),
        }
    }
}

impl TryFrom<pb::PromptTuning> for PromptTuningSpec {
    type Error = Invalid;

    fn try_from(prompt: pb::PromptTuning) -> Result<Self, Invalid> {
        Ok(Self { virtual_tokens: prompt.virtual_tokens, init: named(&prompt.init)? })
    }
}

impl From<&PromptTuningSpec> for pb::PromptTuning {
    fn from(prompt: &PromptTuningSpec) -> Self {
        Self { virtual_tokens: prompt.virtual_tokens, init: prompt.init.to_string() }
    }
}

/// A request's settings, which it keeps none of.
///
/// # Errors
/// A name that is none of those its field knows. Limits are [`Recipe::validate`]'s.
pub fn take_recipe(request: &mut pb::CreateJobRequest) -> Result<Recipe, Invalid> {
    Ok(Recipe {
        lora: request.lora.take().unwrap_or_default().try_into()?,
        prompt_tuning: request.prompt_tuning.take().unwrap_or_default().try_into()?,
        train: request.training.take().unwrap_or_default().try_into()?,
        evaluate: request.evaluation.take().unwrap_or_default().into(),
        stop: request.stopping.take().unwrap_or_default().into(),
        preference: request.preference.take().unwrap_or_default().into(),
    })
}

/// A request with these settings and nothing else.
impl From<&Recipe> for pb::CreateJobRequest {
    fn from(recipe: &Recipe) -> Self {
        Self {
            lora: Some((&recipe.lora).into()),
            prompt_tuning: Some((&recipe.prompt_tuning).into()),
            training: Some((&recipe.train).into()),
            evaluation: Some((&recipe.evaluate).into()),
            stopping: Some((&recipe.stop).into()),
            preference: Some((&recipe.preference).into()),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_fields_take_the_domains_defaults_and_come_back() {
        let recipe = take_recipe(&mut pb::CreateJobRequest::default()).expect("defaults");
        assert_eq!(recipe, Recipe::default());
        assert_eq!(take_recipe(&mut pb::CreateJobRequest::from(&recipe)).expect("back"), recipe);
    }

    #[test]
    fn every_setting_goes_over_the_wire_and_back() {
        let text = r#"{
            "lora": {"rank": 3, "alpha": 7.5, "dropout": 0.25, "target_modules": ["q"], "target_regex": "x.*",
                "exclude_modules": ["o"], "layers": [1, 4], "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 9},
                "rslora": true, "dora": true, "bias": true, "init": "pissa", "plus_ratio": 16},
            "train": {"objective": "dpo", "loss_on": "assistant", "learning_rate": 0.5, "schedule": "linear",
                "warmup_ratio": 0.5, "final_ratio": 0.5, "optimizer": "adamw8bit", "weight_decay": 0.5,
                "max_grad_norm": 0.5, "epochs": 0.5, "max_steps": 5, "max_train_tokens": 6, "batch_rows": 7,
                "micro_batch_rows": 3, "max_tokens": 99, "grouping": "packed", "neftune_alpha": 5,
                "checkpointing": "layers", "precision": "bf16", "quantization": "nf4-single",
                "unfreeze": [{"from": 0.5, "layers": [0, 1]}], "seed": 11, "ranks": 2},
            "evaluate": {"tuning_fraction": 0.25, "max_tuning_rows": 9, "every_steps": 8, "max_new_tokens": 7,
                "max_validation_rows": 6},
            "stop": {"target_loss": 0.5, "patience": 3, "min_improvement": 0.25, "keep_best": false, "max_seconds": 60,
                "max_cost": 5, "price_per_hour": 2, "spike_factor": 4},
            "prompt_tuning": {"virtual_tokens": 7, "init": "uniform"},
            "preference": {"beta": 0.5, "label_smoothing": 0.25, "sft_weight": 1.5}
        }"#;
        let recipe: Recipe = serde_json::from_str(text).expect("reads");
        assert_eq!(take_recipe(&mut pb::CreateJobRequest::from(&recipe)).expect("back"), recipe);
        // Every value above differs from its default, so a field that is not carried over is seen.
        let written = serde_json::to_value(&recipe).expect("json");
        let default = serde_json::to_value(Recipe::default()).expect("json");
        for (section, fields) in written.as_object().expect("sections") {
            for (field, value) in fields.as_object().expect("fields") {
                assert_ne!(Some(value), default.get(section).and_then(|fields| fields.get(field)), "{section}.{field}");
            }
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused_with_the_names_there_are() {
        let training = Some(pb::Training { grouping: "bins".into(), ..Default::default() });
        let mut request = pb::CreateJobRequest { training, ..Default::default() };
        let error = take_recipe(&mut request).expect_err("bins").to_string();
        assert_eq!(error, "train.grouping: \"bins\" is none of length, packed");
        let training = Some(pb::Training { quantization: "int8".into(), ..Default::default() });
        let mut request = pb::CreateJobRequest { training, ..Default::default() };
        let error = take_recipe(&mut request).expect_err("int8").to_string();
        assert!(error.starts_with("train.quantization: \"int8\" is none of nf4"), "{error}");
    }
}
