//! Typed, bounded access to config.json, with the field's name in each error. `null` counts as absent.

use serde_json::{Map, Value};

use crate::{Error, Result};

#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub fn get(self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    /// There, and `null`: which can mean something else than its absence.
    pub fn is_null(self, field: &str) -> bool {
        self.0.get(field).is_some_and(Value::is_null)
    }

    /// A whole number from 1 to `limit`.
    pub fn size(self, field: &str, default: Option<u32>, limit: u32) -> Result<u32> {
        let value = match self.get(field) {
            None => return default.ok_or_else(|| Error::config(field, "is missing")),
            Some(value) => value,
        };
        let whole = value.as_u64().and_then(|whole| u32::try_from(whole).ok());
        whole
            .filter(|whole| (1..=limit).contains(whole))
            .ok_or_else(|| Error::config(field, format!("{value} is no whole number from 1 to {limit}")))
    }

    /// A positive, finite number.
    pub fn positive(self, field: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(field) else { return Ok(default) };
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        number.ok_or_else(|| Error::config(field, format!("{value} is no positive number")))
    }

    pub fn flag(self, field: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| Error::config(field, format!("{value} is not true or false")))
    }

    pub fn nested(self, field: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| Error::config(field, format!("{value} is no object")))?;
        Ok(Some(Fields(object)))
    }

    /// One id or a list of ids.
    pub fn token_ids(self, field: &str, vocab_size: u32) -> Result<Vec<u32>> {
        let values = match self.get(field) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < vocab_size);
            id.ok_or_else(|| Error::config(field, format!("{value} is no token id below {vocab_size}")))
        };
        values.iter().map(id).collect()
    }
}
