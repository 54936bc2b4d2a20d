//! An adapter in memory: its config and the tensors that belong to it, checked against each other.

use std::collections::BTreeMap;

use crate::config::{AdapterConfig, Bias};
use crate::error::{Error, Result};
use crate::folder::Limits;
use crate::tensors::{LoraPair, PromptEmbeddings, Tensors, WholeTensor};
use crate::weights;

const HEAD: &str = "lm_head";

/// A LoRA adapter, or a prompt. Construction checks everything that does not need the base.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: AdapterConfig,
    tensors: Tensors,
}

impl Adapter {
    /// A plain LoRA adapter.
    ///
    /// # Errors
    /// As [`Self::with_tensors`].
    pub fn new(config: AdapterConfig, pairs: BTreeMap<String, LoraPair>) -> Result<Self> {
        Self::with_tensors(config, Tensors { pairs, ..Tensors::default() })
    }

    /// # Errors
    /// No module; a tensor whose sizes, rank or values are wrong; one that the config does not speak of, or that it speaks
    /// of and that is missing; one that cannot be honoured.
    pub fn with_tensors(config: AdapterConfig, tensors: Tensors) -> Result<Self> {
        check_prompt(&config, &tensors)?;
        if tensors.pairs.is_empty() && tensors.whole.is_empty() && tensors.prompt.is_none() {
            return Err(Error::NoEffect { problem: "it has no module".into() });
        }
        for (path, pair) in &tensors.pairs {
            check_pair(&config, path, pair)?;
        }
        let vectors = [
            ("lora_magnitude_vector", "use_dora", config.use_dora, &tensors.magnitudes),
            ("lora_B.bias", "lora_bias", config.lora_bias, &tensors.lora_biases),
        ];
        for (name, setting, expected, vectors) in vectors {
            check_vectors(name, setting, expected, vectors, &tensors.pairs)?;
        }
        for (path, whole) in &tensors.whole {
            check_whole(&config, path, whole, &tensors.pairs)?;
        }
        Ok(Self { config, tensors })
    }

    /// # Errors
    /// Whatever is wrong with either file, by field or tensor.
    pub fn from_bytes(config: &[u8], weights: &[u8], limits: &Limits) -> Result<Self> {
        limits.check_config(config.len() as u64)?;
        limits.check_weights(weights.len() as u64)?;
        Self::with_tensors(AdapterConfig::parse(config)?, weights::read(weights)?)
    }

    /// The bytes of `adapter_model.safetensors`; the same adapter gives the same bytes.
    ///
    /// # Errors
    /// Only if the header would exceed what can be read back.
    pub fn weights_to_bytes(&self) -> Result<Vec<u8>> {
        weights::write(&self.tensors)
    }

    /// The bytes of `adapter_config.json`.
    pub fn config_to_bytes(&self) -> Vec<u8> {
        self.config.to_json()
    }

    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// Everything it holds.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// The embeddings of the virtual tokens that stand before the input: (P, D), row-major. None for LoRA.
    pub fn prompt(&self) -> Option<(usize, &[f32])> {
        let virtual_tokens = self.config.prompt?.virtual_tokens as usize;
        let prompt = self.tensors.prompt.as_ref()?;
        Some((virtual_tokens, prompt.values.get(..virtual_tokens * prompt.token_dim)?))
    }

    pub fn pairs(&self) -> &BTreeMap<String, LoraPair> {
        &self.tensors.pairs
    }

    pub fn into_tensors(self) -> Tensors {
        self.tensors
    }

    /// The factor before B·A·x for the module at `path`.
    pub fn scale_for(&self, path: &str) -> f64 {
        self.config.scale_for(path)
    }

    pub fn max_rank(&self) -> usize {
        self.pairs().values().map(|pair| pair.rank).max().unwrap_or(0)
    }

    /// As [`Tensors::size_bytes`].
    pub fn size_bytes(&self) -> u64 {
        self.tensors.size_bytes()
    }

    pub(crate) fn check_effect(&self) -> Result<()> {
        let Tensors { pairs, magnitudes, lora_biases, whole, prompt, .. } = &self.tensors;
        // Whatever its values, a virtual token is seen.
        let effective = prompt.is_some()
            || !magnitudes.is_empty()
            || whole.keys().any(|path| !is_heads_own(path, pairs))
            || pairs.iter().any(|(path, pair)| {
                let bias = lora_biases.get(path).is_some_and(|bias| bias.iter().any(|value| *value != 0.0));
                self.scale_for(path) != 0.0 && (bias || pair.has_effect())
            });
        if effective {
            return Ok(());
        }
        let problem = "in every module lora_A, lora_B or the scale is zero; it was saved before it was trained".into();
        Err(Error::NoEffect { problem })
    }
}

/// The config and the file say the same of whether there are virtual tokens, how many and of what size.
fn check_prompt(config: &AdapterConfig, tensors: &Tensors) -> Result<()> {
    let refuse = |problem: String| Err(Error::tensor("prompt_embeddings", problem));
    let (settings, prompt) = match (&config.prompt, &tensors.prompt) {
        (None, None) => return Ok(()),
        (Some(_), None) => return refuse("missing; the config is that of prompt tuning".into()),
        (None, Some(_)) => return refuse("the config is LoRA's and has no virtual token".into()),
        (Some(settings), Some(prompt)) => (settings, prompt),
    };
    if !tensors.pairs.is_empty() || !tensors.whole.is_empty() {
        return refuse("other tensors stand beside it; a prompt is all that prompt tuning learns".into());
    }
    let PromptEmbeddings { rows, token_dim, values } = prompt;
    if *rows != settings.rows() || settings.token_dim.is_some_and(|dim| dim as usize != *token_dim) {
        let dim = settings.token_dim.map_or("any".to_owned(), |dim| dim.to_string());
        return refuse(format!("shape {rows}x{token_dim} where the config says {}x{dim}", settings.rows()));
    }
    if rows.checked_mul(*token_dim) != Some(values.len()) {
        return refuse(format!("{} values do not make the shape {rows}x{token_dim}", values.len()));
    }
    check_finite("prompt", "embeddings", values)
}

fn check_pair(config: &AdapterConfig, path: &str, pair: &LoraPair) -> Result<()> {
    let expected_rank = config.rank_for(path);
    if pair.rank != expected_rank as usize {
        let problem = format!("rank {} where the config says {expected_rank}", pair.rank);
        return Err(Error::tensor(path, problem));
    }
    let a_len = pair.rank.checked_mul(pair.in_features);
    let b_len = pair.rank.checked_mul(pair.out_features);
    if pair.in_features == 0 || pair.out_features == 0 || a_len != Some(pair.a.len()) || b_len != Some(pair.b.len()) {
        let problem = format!(
            "{} values in A and {} in B do not make rank {} between {} inputs and {} outputs",
            pair.a.len(),
            pair.b.len(),
            pair.rank,
            pair.in_features,
            pair.out_features
        );
        return Err(Error::tensor(path, problem));
    }
    for (name, values) in [("lora_A", &pair.a), ("lora_B", &pair.b)] {
        check_finite(path, name, values)?;
    }
    if !config.targets(path) {
        // PEFT would skip this tensor when loading, so the adapter would mean different things in different hands.
        return Err(Error::tensor(path, "the config's target_modules do not name this module"));
    }
    Ok(())
}

/// Each pair has its vector [out] exactly if the config has the `setting`.
fn check_vectors(
    name: &str,
    setting: &str,
    expected: bool,
    vectors: &BTreeMap<String, Vec<f32>>,
    pairs: &BTreeMap<String, LoraPair>,
) -> Result<()> {
    if let Some(path) = vectors.keys().find(|_| !expected) {
        return Err(Error::tensor(format!("{path}.{name}"), format!("the config has {setting} off")));
    }
    if let Some(path) = pairs.keys().find(|path| expected && !vectors.contains_key(*path)) {
        return Err(Error::tensor(path, format!("has no {name}; the config has {setting} on")));
    }
    for (path, values) in vectors {
        let out = pairs.get(path).map(|pair| pair.out_features);
        if out != Some(values.len()) {
            let found = out.map_or("no pair of lora_A and lora_B".to_owned(), |out| format!("{out} outputs"));
            let problem = format!("{} values for a module that has {found}", values.len());
            return Err(Error::tensor(format!("{path}.{name}"), problem));
        }
        check_finite(path, name, values)?;
    }
    Ok(())
}

fn check_whole(
    config: &AdapterConfig,
    path: &str,
    whole: &WholeTensor,
    pairs: &BTreeMap<String, LoraPair>,
) -> Result<()> {
    let refused = match path {
        "shared.weight" => Some("PEFT itself never reads a T5's shared; name embed_tokens in modules_to_save instead"),
        _ if path.ends_with(".relative_attention_bias.weight") => {
            Some("position biases of an adapter are not supported; train without them in modules_to_save")
        }
        _ => None,
    };
    if let Some(reason) = refused {
        return Err(Error::tensor(path, reason));
    }
    let values = whole.shape.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
    if values
        .is_none_or(|values| values == 0 || values.checked_mul(whole.dtype.bitsize() / 8) != Some(whole.bytes.len()))
    {
        let problem = format!("{} bytes do not make the shape {:?}", whole.bytes.len(), whole.shape);
        return Err(Error::tensor(path, problem));
    }
    if let Some(at) = weights::first_not_finite(whole.dtype, &whole.bytes) {
        return Err(Error::tensor(path, format!("value {at} is not a finite number")));
    }
    let module = path.rsplit_once('.').map_or(path, |(module, _)| module);
    let trained_bias = path.ends_with(".bias")
        && match config.bias {
            Bias::None => false,
            Bias::LoraOnly => pairs.contains_key(module),
            Bias::All => true,
        };
    if is_heads_own(path, pairs) {
        return Ok(());
    }
    if !trained_bias && !config.saves_whole(path) {
        return Err(Error::tensor(path, "neither modules_to_save nor bias of the config asks for this tensor"));
    }
    if !path.ends_with(".bias") && pairs.contains_key(module) {
        return Err(Error::tensor(path, "this module has lora_A and lora_B as well; only one of both can be meant"));
    }
    Ok(())
}

/// Beside LoRA on the head PEFT saves the head's own weight, though it was not trained.
pub(crate) fn is_heads_own(path: &str, pairs: &BTreeMap<String, LoraPair>) -> bool {
    path.strip_suffix(".weight").is_some_and(|module| module == HEAD && pairs.contains_key(module))
}

fn check_finite(path: &str, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Error::tensor(format!("{path}.{name}"), format!("value {at} is not a finite number"))),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
