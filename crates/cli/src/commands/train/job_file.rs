//! A job as a file: what it is made from, what it is called, and every setting, in YAML or JSON.

use std::path::Path;

use anyhow::Context as _;
use schemars::JsonSchema;
use serde::Deserialize;
use tailor_domain::{EvaluateSpec, LoraSpec, PreferenceSpec, PromptTuningSpec, Recipe, StopSpec, TrainSpec};

use crate::args::RecipeFlags;

/// No job file is longer.
const MAX_BYTES: u64 = 1 << 20;

/// A training job of Tailor. What is left out takes its default.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobFile {
    /// A registered base: `tailor base list`.
    pub base: String,
    /// `name`, or `name@version`.
    pub dataset: String,
    /// The name under which the result is published.
    pub adapter: String,
    #[serde(default)]
    pub lora: LoraSpec,
    #[serde(default)]
    pub prompt_tuning: PromptTuningSpec,
    #[serde(default)]
    pub train: TrainSpec,
    #[serde(default)]
    pub evaluate: EvaluateSpec,
    #[serde(default)]
    pub stop: StopSpec,
    #[serde(default)]
    pub preference: PreferenceSpec,
}

impl JobFile {
    /// JSON is YAML too; there is one reader for both.
    ///
    /// # Errors
    /// The file cannot be read, is too long, or says something that no job knows, by key, line and column.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read job file {}", path.display());
        let size = std::fs::metadata(path).with_context(cannot)?.len();
        anyhow::ensure!(size <= MAX_BYTES, "job file {} has {size} bytes; the limit is {MAX_BYTES}", path.display());
        let text = std::fs::read_to_string(path).with_context(cannot)?;
        Self::parse(&text).with_context(|| format!("job file {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        // The reader begins with a word that we have said already.
        serde_saphyr::from_str(text).map_err(|error| {
            let said = error.to_string();
            anyhow::anyhow!("{}", said.strip_prefix("error: ").unwrap_or(&said))
        })
    }

    /// A flag that is given wins over the file.
    pub fn override_with(&mut self, flags: &RecipeFlags) {
        set(&mut self.lora.rank, &flags.rank);
        set(&mut self.train.epochs, &flags.epochs);
        set(&mut self.train.max_steps, &flags.max_steps);
        set(&mut self.train.batch_rows, &flags.batch);
        set(&mut self.train.micro_batch_rows, &flags.micro_batch);
        set(&mut self.train.ranks, &flags.ranks);
        set(&mut self.train.max_tokens, &flags.max_tokens);
    }

    pub fn recipe(&self) -> Recipe {
        Recipe {
            lora: self.lora.clone(),
            prompt_tuning: self.prompt_tuning.clone(),
            train: self.train.clone(),
            evaluate: self.evaluate.clone(),
            stop: self.stop.clone(),
            preference: self.preference.clone(),
        }
    }
}

/// Puts what a flag says in a field's place, where it says anything.
pub fn set<T: Clone>(field: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        field.clone_from(value);
    }
}

pub fn schema() -> schemars::Schema {
    schemars::schema_for!(JobFile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml = "base: b\ndataset: d@2\nadapter: a\nlora:\n  rank: 8\n  rslora: true\ntrain: {grouping: packed}\n";
        let json = r#"{"base": "b", "dataset": "d@2", "adapter": "a",
            "lora": {"rank": 8, "rslora": true}, "train": {"grouping": "packed"}}"#;
        let (yaml, json) = (JobFile::parse(yaml).expect("yaml"), JobFile::parse(json).expect("json"));
        assert_eq!((yaml.recipe(), &yaml.dataset), (json.recipe(), &json.dataset));
        assert_eq!(yaml.recipe().lora.rank, 8);
        assert_eq!(yaml.recipe().lora.alpha, LoraSpec::default().alpha, "what is left out is the default");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let error =
            JobFile::parse("base: b\ndataset: d\nadapter: a\nlora:\n  rnak: 8\n").expect_err("rnak").to_string();
        assert!(error.contains("rnak") && error.contains('5'), "{error}");
        let error = JobFile::parse("base: b\ndataset: d\n").expect_err("no adapter").to_string();
        assert!(error.contains("adapter"), "{error}");
        let error = JobFile::parse("base: b\ndataset: d\nadapter: a\ntrain: {optimizer: sgd}\n").expect_err("sgd");
        assert!(error.to_string().contains("adamw8bit"), "the names there are: {error}");
    }

    #[test]
    fn the_schema_knows_every_section_and_forbids_others() {
        let schema = serde_json::to_value(schema()).expect("json");
        assert_eq!(schema["additionalProperties"], serde_json::json!(false));
        for section in ["base", "lora", "prompt_tuning", "train", "evaluate", "stop", "preference"] {
            assert!(schema["properties"][section].is_object(), "{section}");
        }
        let shown = &schema["$defs"]["TrainSpec"]["properties"]["learning_rate"];
        assert!(shown["description"].is_string() && shown["default"].is_number(), "what an editor shows: {shown}");
    }
}
