//! `adapter_config.json`: what Tailor honours is parsed into fields, what is inert is kept for the way back, and what
//! Tailor cannot honour is refused by name.

mod fields;
mod job;
mod prompt;
mod refuse;

use serde_json::{Map, Value};

use self::fields::{finite, flag, layer_list, modules, number, pattern_entries, rank, text, text_list};
use crate::error::{Error, Result};
use crate::pattern::{self, LayerIndex, Patterns, SavedModules};

pub use self::job::{decimal, layer_number};
pub use self::prompt::{MAX_VIRTUAL_TOKENS, PromptTuning};

/// As for a training job: a rank above this is no low rank.
pub(crate) const MAX_RANK: u64 = 1024;

/// A list of module name endings, or one regular expression over whole paths.
#[derive(Debug, Clone)]
pub enum Modules {
    Names(Vec<String>),
    Pattern {
        text: String,
        regex: regex::Regex,
    },
    /// PEFT's `all-linear`: every linear layer but the head.
    AllLinear,
}

/// PEFT's `bias`: which of the base's biases were trained with the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    None,
    /// Those of the targeted modules.
    LoraOnly,
    All,
}

/// The settings of an adapter: LoRA's (arXiv 2106.09685, §4.1), or a prompt's, where those of LoRA are empty.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    /// `CAUSAL_LM` or `SEQ_2_SEQ_LM`; some adapters have none.
    pub task_type: Option<String>,
    pub base_model_name_or_path: Option<String>,
    pub r: u32,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    /// Scale α/√r instead of α/r (arXiv 2312.03732).
    pub use_rslora: bool,
    pub target_modules: Modules,
    exclude_modules: Option<Modules>,
    rank_pattern: Patterns<u32>,
    alpha_pattern: Patterns<f64>,
    layers_to_transform: Option<Vec<u64>>,
    layer_index: LayerIndex,
    /// Each B·A is followed by a magnitude (arXiv 2402.09353).
    pub use_dora: bool,
    /// Each B has a bias.
    pub lora_bias: bool,
    /// Which of the base's biases the adapter brings its own of.
    pub bias: Bias,
    modules_to_save: SavedModules,
    /// Set where the adapter is a prompt and nothing else.
    pub prompt: Option<PromptTuning>,
    /// Every field of the file, as read or as PEFT would write it; the typed fields above were taken from here.
    raw: Map<String, Value>,
}

impl AdapterConfig {
    /// The config of a freshly trained adapter, with the fields that `peft` has known since 0.9.
    ///
    /// # Errors
    /// Rank, alpha or dropout outside their limits, or no target module.
    pub fn new(task_type: &str, rank: u32, alpha: f64, dropout: f64, target_modules: &[String]) -> Result<Self> {
        let mut names = target_modules.to_vec();
        names.sort();
        names.dedup();
        let alpha = if alpha.fract() == 0.0 && alpha.abs() < 1e9 { Value::from(alpha as i64) } else { alpha.into() };
        Self::from_value(serde_json::json!({
            "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": null, "bias": "none",
            "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layers_pattern": null,
            "layers_to_transform": null, "lora_alpha": alpha, "lora_dropout": dropout, "modules_to_save": null,
            "peft_type": "LORA", "r": rank, "rank_pattern": {}, "revision": null, "target_modules": names,
            "task_type": task_type, "use_dora": false, "use_rslora": false,
        }))
    }

    /// The config of a freshly trained prompt: `virtual_tokens` embeddings of `token_dim` values.
    ///
    /// # Errors
    /// No virtual token, or too many.
    pub fn prompt_tuning(task_type: &str, virtual_tokens: u32, token_dim: u32) -> Result<Self> {
        Self::from_value(serde_json::json!({
            "auto_mapping": null, "base_model_name_or_path": null, "inference_mode": true, "num_attention_heads": null,
            "num_layers": null, "num_transformer_submodules": 1, "num_virtual_tokens": virtual_tokens,
            "peft_type": prompt::TYPE, "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": null,
            "revision": null, "task_type": task_type, "token_dim": token_dim, "tokenizer_name_or_path": null,
        }))
    }

    /// The same config, saying which base it belongs to. PEFT shows it and loads the base by it.
    pub fn with_base(mut self, name: &str) -> Self {
        self.base_model_name_or_path = Some(name.to_owned());
        self.raw.insert("base_model_name_or_path".into(), name.into());
        self
    }

    /// The same config with these fields of the file in the place of its own.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn with_fields(mut self, fields: Map<String, Value>) -> Result<Self> {
        self.raw.extend(fields);
        Self::from_value(self.raw.into())
    }

    /// A pattern that matches none of these modules, with its field.
    pub fn unused_pattern<'a>(
        &self,
        paths: impl Iterator<Item = &'a String> + Clone,
    ) -> Option<(&'static str, String)> {
        let unused = self.rank_pattern.unused(paths.clone()).map(|pattern| ("rank_pattern", pattern));
        unused.or_else(|| self.alpha_pattern.unused(paths).map(|pattern| ("alpha_pattern", pattern)))
    }

    /// The same config with `rank` and `alpha` equal, so that the scale is 1: this rank everywhere but where the keys of
    /// `others` say another.
    pub(crate) fn with_scale_one(&self, rank: u32, others: &[(String, u32)]) -> Result<Self> {
        let pattern: Map<String, Value> = others.iter().map(|(key, rank)| (key.clone(), (*rank).into())).collect();
        let mut raw = self.raw.clone();
        raw.insert("r".into(), rank.into());
        raw.insert("lora_alpha".into(), rank.into());
        raw.insert("rank_pattern".into(), pattern.clone().into());
        raw.insert("alpha_pattern".into(), pattern.into());
        raw.insert("use_rslora".into(), false.into());
        Self::from_value(raw.into())
    }

    /// # Errors
    /// Not JSON, a field out of range, or a setting that Tailor cannot honour, by name.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(json)
            .map_err(|error| Error::config("(whole file)", format!("not JSON: {error}")))?;
        Self::from_value(value)
    }

    fn from_value(value: Value) -> Result<Self> {
        let Value::Object(raw) = value else {
            return Err(Error::config("(whole file)", "must be a JSON object"));
        };
        if raw.get("peft_type").is_some_and(|kind| kind == prompt::TYPE) {
            return Self::of_prompt(raw);
        }
        refuse::unsupported(&raw)?;

        let r = match raw.get("r") {
            None => 8, // PEFT's default
            Some(value) => rank("r", value)?,
        };
        let lora_alpha = number(&raw, "lora_alpha", 8.0, 0.0, 1e9)?;
        let lora_dropout = number(&raw, "lora_dropout", 0.0, 0.0, 1.0)?;
        let target_modules = modules(&raw, "target_modules")?.ok_or_else(|| {
            Error::config("target_modules", "missing or empty; it must list the modules that the adapter changes")
        })?;
        let rank_pattern = pattern_entries(&raw, "rank_pattern", rank)?;
        let alpha_pattern = pattern_entries(&raw, "alpha_pattern", |field, value| finite(field, value, 0.0, 1e9))?;

        Ok(Self {
            task_type: text(&raw, "task_type")?,
            base_model_name_or_path: text(&raw, "base_model_name_or_path")?,
            r,
            lora_alpha,
            lora_dropout,
            use_rslora: flag(&raw, "use_rslora")?,
            target_modules,
            exclude_modules: modules(&raw, "exclude_modules")?,
            rank_pattern: Patterns::compile("rank_pattern", rank_pattern)?,
            alpha_pattern: Patterns::compile("alpha_pattern", alpha_pattern)?,
            layers_to_transform: layer_list(&raw)?,
            layer_index: LayerIndex::compile(&text_list(&raw, "layers_pattern")?)?,
            use_dora: flag(&raw, "use_dora")?,
            lora_bias: flag(&raw, "lora_bias")?,
            bias: fields::bias(&raw)?,
            modules_to_save: SavedModules::compile(text_list(&raw, "modules_to_save")?)?,
            prompt: None,
            raw,
        })
    }

    /// No module is a target of it.
    fn of_prompt(raw: Map<String, Value>) -> Result<Self> {
        Ok(Self {
            task_type: text(&raw, "task_type")?,
            base_model_name_or_path: text(&raw, "base_model_name_or_path")?,
            r: 0,
            lora_alpha: 0.0,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules: Modules::Names(Vec::new()),
            exclude_modules: None,
            rank_pattern: Patterns::compile("rank_pattern", Vec::new())?,
            alpha_pattern: Patterns::compile("alpha_pattern", Vec::new())?,
            layers_to_transform: None,
            layer_index: LayerIndex::compile(&[])?,
            use_dora: false,
            lora_bias: false,
            bias: Bias::None,
            modules_to_save: SavedModules::compile(Vec::new())?,
            prompt: Some(PromptTuning::read(&raw)?),
            raw,
        })
    }

    /// The bytes of `adapter_config.json` as `peft` writes them: sorted keys, two spaces, ASCII only.
    pub fn to_json(&self) -> Vec<u8> {
        let mut keys: Vec<&String> = self.raw.keys().collect();
        keys.sort();
        let sorted: Map<String, Value> = keys.into_iter().map(|key| (key.clone(), self.raw[key].clone())).collect();
        let pretty = format!("{:#}", Value::Object(sorted));
        let mut ascii = String::with_capacity(pretty.len());
        for character in pretty.chars() {
            if character.is_ascii() {
                ascii.push(character);
            } else {
                // Only string contents can be non-ASCII, so escaping character by character keeps the JSON valid.
                let mut units = [0u16; 2];
                for unit in character.encode_utf16(&mut units) {
                    ascii.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        ascii.into_bytes()
    }

    pub fn rank_for(&self, path: &str) -> u32 {
        self.rank_pattern.find(path).unwrap_or(self.r)
    }

    /// The factor before B·A·x for the module at `path`.
    pub fn scale_for(&self, path: &str) -> f64 {
        let alpha = self.alpha_pattern.find(path).unwrap_or(self.lora_alpha);
        let rank = f64::from(self.rank_for(path));
        if self.use_rslora { alpha / rank.sqrt() } else { alpha / rank }
    }

    /// Whether PEFT would put an adapter on the linear module at `path`.
    pub fn targets(&self, path: &str) -> bool {
        if self.exclude_modules.as_ref().is_some_and(|excluded| excluded.matches(path)) {
            return false;
        }
        if self.modules_to_save.keep_off(path) || !self.target_modules.matches(path) {
            return false;
        }
        match (&self.target_modules, &self.layers_to_transform) {
            // As in PEFT: a module named in full is taken whatever its layer.
            (Modules::Names(names), Some(layers)) if !names.iter().any(|name| name == path) => {
                self.layer_index.of(path).is_some_and(|index| layers.contains(&index))
            }
            _ => true,
        }
    }

    /// Whether PEFT would save the parameter at `path` whole, as part of one of `modules_to_save`.
    pub fn saves_whole(&self, path: &str) -> bool {
        self.modules_to_save.wrap(path)
    }

    /// What a server elsewhere may not take, for people to read at publish time.
    pub fn portability_notes(&self) -> Vec<String> {
        const VLLM_RANKS: [u32; 8] = [8, 16, 32, 64, 128, 256, 320, 512];
        let mut notes = Vec::new();
        if self.prompt.is_some() {
            notes.push("vLLM serves LoRA and no prompt tuning".to_owned());
        }
        let largest = self.rank_pattern.iter().map(|(_, rank)| rank).fold(self.r, u32::max);
        if VLLM_RANKS.iter().all(|rank| *rank < largest) {
            notes.push(format!("rank {largest} is above 512, the largest that vLLM serves"));
        }
        for (setting, is_on) in [
            ("use_dora", self.use_dora),
            ("modules_to_save", !self.modules_to_save.is_empty()),
            ("lora_bias", self.lora_bias),
            ("bias", self.bias != Bias::None),
        ] {
            if is_on {
                notes.push(format!("vLLM refuses adapters with {setting}"));
            }
        }
        notes
    }

    /// Equal settings, whatever the order of the keys in the file.
    pub fn same_settings(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl Modules {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| pattern::ends_with_module(path, name)),
            Self::Pattern { regex, .. } => regex.is_match(path),
            Self::AllLinear => !pattern::ends_with_module(path, "lm_head"),
        }
    }
}

/// A value for a message: never longer than a line.
pub(crate) fn clip(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests;
