//! `adapter_config.json`: what Tailor honours is parsed into fields, what is inert is kept for the way back, and what
//! Tailor cannot honour is refused by name.

mod refuse;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::pattern::{self, Patterns};

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

/// The LoRA settings of an adapter (arXiv 2106.09685, §4.1).
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
    layers_pattern: Vec<String>,
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

    /// The same config, saying which base it belongs to. PEFT shows it and loads the base by it.
    pub fn with_base(mut self, name: &str) -> Self {
        self.base_model_name_or_path = Some(name.to_owned());
        self.raw.insert("base_model_name_or_path".into(), name.into());
        self
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
            layers_pattern: text_list(&raw, "layers_pattern")?,
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
        if !self.target_modules.matches(path) {
            return false;
        }
        match (&self.target_modules, &self.layers_to_transform) {
            // As in PEFT: a module named in full is taken whatever its layer.
            (Modules::Names(names), Some(layers)) if !names.iter().any(|name| name == path) => {
                pattern::layer_index(path, &self.layers_pattern).is_some_and(|index| layers.contains(&index))
            }
            _ => true,
        }
    }

    /// What a server elsewhere may not take, for people to read at publish time.
    pub fn portability_notes(&self) -> Vec<String> {
        const VLLM_RANKS: [u32; 8] = [8, 16, 32, 64, 128, 256, 320, 512];
        let largest = self.rank_pattern.iter().map(|(_, rank)| rank).fold(self.r, u32::max);
        if VLLM_RANKS.iter().any(|rank| *rank >= largest) {
            return Vec::new();
        }
        vec![format!("rank {largest} is above 512, the largest that vLLM serves")]
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

fn present<'a>(raw: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    raw.get(field).filter(|value| !value.is_null())
}

fn text(raw: &Map<String, Value>, field: &str) -> Result<Option<String>> {
    match present(raw, field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(Error::config(field, format!("{} is not a text", clip(other)))),
    }
}

fn flag(raw: &Map<String, Value>, field: &str) -> Result<bool> {
    match present(raw, field) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(Error::config(field, format!("{} is neither true nor false", clip(other)))),
    }
}

fn finite(field: &str, value: &Value, low: f64, high: f64) -> Result<f64> {
    match value.as_f64() {
        Some(number) if number >= low && number <= high => Ok(number),
        _ => Err(Error::config(field, format!("{} is not a number from {low} to {high}", clip(value)))),
    }
}

fn number(raw: &Map<String, Value>, field: &str, default: f64, low: f64, high: f64) -> Result<f64> {
    present(raw, field).map_or(Ok(default), |value| finite(field, value, low, high))
}

fn rank(field: &str, value: &Value) -> Result<u32> {
    match value.as_u64() {
        Some(rank) if (1..=MAX_RANK).contains(&rank) => Ok(rank as u32),
        _ => Err(Error::config(field, format!("rank {} is outside 1 to {MAX_RANK}", clip(value)))),
    }
}

fn pattern_entries<T>(
    raw: &Map<String, Value>,
    field: &str,
    read: impl Fn(&str, &Value) -> Result<T>,
) -> Result<Vec<(String, T)>> {
    const MAX_ENTRIES: usize = 10_000;
    match present(raw, field) {
        None => Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() > MAX_ENTRIES => {
            Err(Error::config(field, format!("{} entries, the limit is {MAX_ENTRIES}", map.len())))
        }
        Some(Value::Object(map)) => {
            map.iter().map(|(key, value)| Ok((key.clone(), read(&format!("{field}.{key}"), value)?))).collect()
        }
        Some(other) => Err(Error::config(field, format!("{} is not an object", clip(other)))),
    }
}

fn text_list(raw: &Map<String, Value>, field: &str) -> Result<Vec<String>> {
    match present(raw, field) {
        None => Ok(Vec::new()),
        Some(Value::String(one)) if one.is_empty() => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(values)) => values
            .iter()
            .map(|value| match value.as_str() {
                Some(name) if !name.is_empty() => Ok(name.to_owned()),
                _ => Err(Error::config(field, format!("entry {} is not a name", clip(value)))),
            })
            .collect(),
        Some(other) => Err(Error::config(field, format!("{} is not a list of names", clip(other)))),
    }
}

fn modules(raw: &Map<String, Value>, field: &str) -> Result<Option<Modules>> {
    match present(raw, field) {
        Some(Value::String(text)) if text.to_lowercase() == "all-linear" => Ok(Some(Modules::AllLinear)),
        Some(Value::String(text)) if !text.is_empty() => {
            let regex = pattern::compile(field, &format!("^(?:{text})$"))?;
            Ok(Some(Modules::Pattern { text: text.clone(), regex }))
        }
        _ => {
            let names = text_list(raw, field)?;
            Ok((!names.is_empty()).then_some(Modules::Names(names)))
        }
    }
}

fn layer_list(raw: &Map<String, Value>) -> Result<Option<Vec<u64>>> {
    const FIELD: &str = "layers_to_transform";
    let bad = |value: &Value| Error::config(FIELD, format!("{} is not a layer number", clip(value)));
    match present(raw, FIELD) {
        None => Ok(None),
        Some(Value::Array(values)) if values.is_empty() => Ok(None),
        Some(Value::Array(values)) => {
            values.iter().map(|value| value.as_u64().ok_or_else(|| bad(value))).collect::<Result<_>>().map(Some)
        }
        Some(value) => value.as_u64().ok_or_else(|| bad(value)).map(|one| Some(vec![one])),
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
