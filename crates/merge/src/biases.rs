//! Biases that the base has not: config.json must have a word for them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::weight::{Edit, Source, Weight};
use crate::{Error, Result};

const ATTENTION: &[&str] = &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
const FEED_FORWARD: &[&str] = &["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

/// The field by which transformers gives the linear layer a bias, and all the layers that get one by it.
fn field(model_type: &str, module: &str) -> Option<(&'static str, &'static [&'static str])> {
    let is_one = |group: &[&str]| group.iter().any(|layer| module.ends_with(&format!(".{layer}")));
    match model_type {
        "llama" | "qwen3" | "gemma" | "gemma2" | "gemma3_text" if is_one(ATTENTION) => {
            Some(("attention_bias", ATTENTION))
        }
        "llama" if is_one(FEED_FORWARD) => Some(("mlp_bias", FEED_FORWARD)),
        _ => None,
    }
}

/// Gives `module` a bias of zeros, and the others that the same field of `config` is for.
///
/// # Errors
/// No field is for it.
pub(crate) fn add<'a>(
    weights: &mut BTreeMap<String, Weight<'a>>,
    config: &mut Map<String, Value>,
    module: &str,
) -> Result<()> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let Some((field, group)) = field(model_type, module) else {
        let problem = format!("the base has no such bias, and config.json has no field that gives {model_type:?} one");
        return Err(Error::not_expressible(&format!("{module}.bias"), problem));
    };
    let of_group = |name: &str| {
        let module = name.strip_suffix(".weight")?;
        group.iter().any(|layer| module.ends_with(&format!(".{layer}"))).then(|| format!("{module}.bias"))
    };
    let wanted: Vec<(String, usize)> =
        weights.values().filter_map(|weight| Some((of_group(&weight.name)?, *weight.shape.first()?))).collect();
    for (name, out) in wanted {
        let zeros = || Weight { name: name.clone(), shape: vec![out], source: Source::Zeros, edit: Edit::default() };
        weights.entry(name.clone()).or_insert_with(zeros);
    }
    config.insert(field.into(), true.into());
    Ok(())
}
