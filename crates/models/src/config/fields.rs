//! Typed, bounded access to a JSON object, with the field's name in each error.

use serde_json::{Map, Value};

use crate::config::Activation;
use crate::{Error, Result};

/// More end tokens than any model has; each token that is made is compared with them.
const MAX_TOKEN_IDS: usize = 1024;

pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object }
    }

    /// The value, with `null` as absent.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there and says `null`, which can mean something else than its absence.
    pub(super) fn is_null(&self, field: &str) -> bool {
        self.object.get(field).is_some_and(Value::is_null)
    }

    pub(super) fn text(&self, field: &str) -> Result<&'a str> {
        self.get(field).and_then(Value::as_str).ok_or_else(|| Error::config(field, "a text is needed"))
    }

    /// A whole number from 1 to `limit`.
    pub(super) fn size(&self, field: &str, limit: i64) -> Result<i64> {
        self.size_or(field, None, limit)
    }

    pub(super) fn size_or(&self, field: &str, default: Option<i64>, limit: i64) -> Result<i64> {
        self.whole(field, default, 1, limit)
    }

    /// A whole number from 0 to `limit`.
    pub(super) fn count_or(&self, field: &str, default: i64, limit: i64) -> Result<i64> {
        self.whole(field, Some(default), 0, limit)
    }

    fn whole(&self, field: &str, default: Option<i64>, least: i64, limit: i64) -> Result<i64> {
        let value = match self.get(field) {
            None => default.ok_or_else(|| Error::config(field, "is missing"))?,
            Some(value) => value.as_i64().ok_or_else(|| Error::config(field, format!("{value} is no whole number")))?,
        };
        if (least..=limit).contains(&value) {
            return Ok(value);
        }
        Err(Error::config(field, format!("{value} is not between {least} and {limit}")))
    }

    /// A positive, finite number.
    pub(super) fn positive(&self, field: &str, default: f64) -> Result<f64> {
        let value = match self.get(field) {
            None => default,
            Some(value) => value.as_f64().ok_or_else(|| Error::config(field, format!("{value} is no number")))?,
        };
        if value.is_finite() && value > 0.0 {
            return Ok(value);
        }
        Err(Error::config(field, format!("{value} is not a positive number")))
    }

    pub(super) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| Error::config(field, format!("{value} is not true or false"))),
        }
    }

    pub(super) fn activation(&self, field: &str, default: &str) -> Result<Activation> {
        match self.get(field).map_or(Some(default), Value::as_str) {
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some("gelu") => Ok(Activation::Gelu),
            Some("relu") => Ok(Activation::Relu),
            other => Err(Error::config(
                field,
                format!("{other:?} is not one of silu, gelu_new, gelu_pytorch_tanh, gelu, relu"),
            )),
        }
    }

    /// One id or a list of ids.
    pub(super) fn token_ids(&self, field: &str, vocab_size: i64) -> Result<Vec<u32>> {
        let values = match self.get(field) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) if values.len() > MAX_TOKEN_IDS => {
                return Err(Error::config(field, format!("{} ids; the limit is {MAX_TOKEN_IDS}", values.len())));
            }
            Some(Value::Array(values)) => values.clone(),
            Some(value) => vec![value.clone()],
        };
        let id = |value: &Value| {
            let id = value.as_u64().filter(|&id| (id as i128) < vocab_size as i128);
            id.map(|id| id as u32)
                .ok_or_else(|| Error::config(field, format!("{value} is no token id below {vocab_size}")))
        };
        values.iter().map(id).collect()
    }

    /// An object inside the object; absent where the field is.
    pub(super) fn nested(&self, field: &str) -> Result<Option<Fields<'a>>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields::new(object))),
            Some(other) => Err(Error::config(field, format!("{other} is no object"))),
        }
    }
}
