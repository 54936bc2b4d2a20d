//! Reading single fields of `adapter_config.json`: absent and null are the same, and a wrong value is named.

use serde_json::{Map, Value};

use super::{Bias, MAX_RANK, Modules, clip};
use crate::error::{Error, Result};
use crate::pattern;

/// Of a list or a map; each may become a compiled pattern that every module is compared with.
const MAX_ENTRIES: usize = 4096;

pub(super) fn present<'a>(raw: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    raw.get(field).filter(|value| !value.is_null())
}

pub(super) fn text(raw: &Map<String, Value>, field: &str) -> Result<Option<String>> {
    match present(raw, field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(Error::config(field, format!("{} is not a text", clip(other)))),
    }
}

pub(super) fn flag(raw: &Map<String, Value>, field: &str) -> Result<bool> {
    match present(raw, field) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(Error::config(field, format!("{} is neither true nor false", clip(other)))),
    }
}

pub(super) fn finite(field: &str, value: &Value, low: f64, high: f64) -> Result<f64> {
    match value.as_f64() {
        Some(number) if number >= low && number <= high => Ok(number),
        _ => Err(Error::config(field, format!("{} is not a number from {low} to {high}", clip(value)))),
    }
}

pub(super) fn number(raw: &Map<String, Value>, field: &str, default: f64, low: f64, high: f64) -> Result<f64> {
    present(raw, field).map_or(Ok(default), |value| finite(field, value, low, high))
}

pub(super) fn rank(field: &str, value: &Value) -> Result<u32> {
    match value.as_u64() {
        Some(rank) if (1..=MAX_RANK).contains(&rank) => Ok(rank as u32),
        _ => Err(Error::config(field, format!("rank {} is outside 1 to {MAX_RANK}", clip(value)))),
    }
}

pub(super) fn pattern_entries<T>(
    raw: &Map<String, Value>,
    field: &str,
    read: impl Fn(&str, &Value) -> Result<T>,
) -> Result<Vec<(String, T)>> {
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

pub(super) fn text_list(raw: &Map<String, Value>, field: &str) -> Result<Vec<String>> {
    match present(raw, field) {
        None => Ok(Vec::new()),
        Some(Value::String(one)) if one.is_empty() => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(values)) if values.len() > MAX_ENTRIES => {
            Err(Error::config(field, format!("{} entries, the limit is {MAX_ENTRIES}", values.len())))
        }
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

pub(super) fn modules(raw: &Map<String, Value>, field: &str) -> Result<Option<Modules>> {
    match present(raw, field) {
        // A short form among targets only: elsewhere PEFT takes it for a pattern.
        Some(Value::String(text)) if field == "target_modules" && text.to_lowercase() == "all-linear" => {
            Ok(Some(Modules::AllLinear))
        }
        Some(Value::String(text)) if !text.is_empty() => {
            // By itself first: `)|(` is none, and would be one in the brackets.
            pattern::compile(field, text)?;
            let regex = pattern::compile(field, &format!("^(?:{text})$"))?;
            Ok(Some(Modules::Pattern { text: text.clone(), regex }))
        }
        _ => {
            let names = text_list(raw, field)?;
            Ok((!names.is_empty()).then_some(Modules::Names(names)))
        }
    }
}

pub(super) fn layer_list(raw: &Map<String, Value>) -> Result<Option<Vec<u64>>> {
    const FIELD: &str = "layers_to_transform";
    let bad = |value: &Value| Error::config(FIELD, format!("{} is not a layer number", clip(value)));
    match present(raw, FIELD) {
        None => Ok(None),
        Some(Value::Array(values)) if values.is_empty() => Ok(None),
        Some(Value::Array(values)) if values.len() > MAX_ENTRIES => {
            Err(Error::config(FIELD, format!("{} entries, the limit is {MAX_ENTRIES}", values.len())))
        }
        Some(Value::Array(values)) => {
            values.iter().map(|value| value.as_u64().ok_or_else(|| bad(value))).collect::<Result<_>>().map(Some)
        }
        Some(value) => value.as_u64().ok_or_else(|| bad(value)).map(|one| Some(vec![one])),
    }
}

pub(super) fn bias(raw: &Map<String, Value>) -> Result<Bias> {
    match text(raw, "bias")?.as_deref() {
        None | Some("none") => Ok(Bias::None),
        Some("lora_only") => Ok(Bias::LoraOnly),
        Some("all") => Ok(Bias::All),
        Some(other) => Err(Error::config("bias", format!("{other:?} is none of none, lora_only and all"))),
    }
}
