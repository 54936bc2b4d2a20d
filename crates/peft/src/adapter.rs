//! An adapter in memory: its config and one pair of matrices for each module it changes.

use std::collections::BTreeMap;

use crate::config::AdapterConfig;
use crate::error::{Error, Result};
use crate::folder::Limits;
use crate::weights;

/// How many modules a message lists before it only counts.
const LISTED: usize = 5;

/// The size of a base's linear layer: `x` has `in_features`, `W·x` has `out_features`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    pub in_features: usize,
    pub out_features: usize,
}

/// The low-rank update B·A of one linear layer.
///
/// # Shapes
/// `a`: (R, in), `b`: (out, R), both row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPair {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub rank: usize,
    pub in_features: usize,
    pub out_features: usize,
}

/// A LoRA adapter. Construction checks everything that does not need the base.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: AdapterConfig,
    /// By the base's parameter path without `.weight`, e.g. `model.layers.0.self_attn.q_proj`.
    pairs: BTreeMap<String, LoraPair>,
}

impl Adapter {
    /// # Errors
    /// No module; a pair whose sizes, rank or values are wrong; a module that the config does not target.
    pub fn new(config: AdapterConfig, pairs: BTreeMap<String, LoraPair>) -> Result<Self> {
        if pairs.is_empty() {
            return Err(Error::NoEffect { problem: "it has no module".into() });
        }
        for (path, pair) in &pairs {
            check_pair(&config, path, pair)?;
        }
        Ok(Self { config, pairs })
    }

    /// # Errors
    /// Whatever is wrong with either file, by field or tensor.
    pub fn from_bytes(config: &[u8], weights: &[u8], limits: &Limits) -> Result<Self> {
        limits.check_config(config.len() as u64)?;
        limits.check_weights(weights.len() as u64)?;
        Self::new(AdapterConfig::parse(config)?, weights::read(weights)?)
    }

    /// The bytes of `adapter_model.safetensors`; the same adapter gives the same bytes.
    ///
    /// # Errors
    /// Only if the header would exceed what can be read back.
    pub fn weights_to_bytes(&self) -> Result<Vec<u8>> {
        weights::write(&self.pairs)
    }

    /// The bytes of `adapter_config.json`.
    pub fn config_to_bytes(&self) -> Vec<u8> {
        self.config.to_json()
    }

    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    pub fn pairs(&self) -> &BTreeMap<String, LoraPair> {
        &self.pairs
    }

    pub fn into_pairs(self) -> BTreeMap<String, LoraPair> {
        self.pairs
    }

    /// The factor before B·A·x for the module at `path`.
    pub fn scale_for(&self, path: &str) -> f64 {
        self.config.scale_for(path)
    }

    pub fn max_rank(&self) -> usize {
        self.pairs.values().map(|pair| pair.rank).max().unwrap_or(0)
    }

    /// Bytes that A and B take in f32.
    pub fn size_bytes(&self) -> u64 {
        self.pairs.values().map(|pair| 4 * (pair.a.len() + pair.b.len()) as u64).sum()
    }

    /// Checks that the adapter belongs on a base with these linear layers and changes something there. A server that
    /// skips this answers with the plain base and says nothing.
    ///
    /// # Errors
    /// `DoesNotFit` lists modules the base lacks or has in another size; `NoEffect` when no module changes an output.
    pub fn check_against(&self, linears: &BTreeMap<String, LinearShape>) -> Result<()> {
        let missing: Vec<&str> =
            self.pairs.keys().filter(|path| !linears.contains_key(*path)).map(String::as_str).collect();
        if !missing.is_empty() {
            let problem = format!(
                "{} of its {} modules are not in the base: {}",
                missing.len(),
                self.pairs.len(),
                list(&missing)
            );
            return Err(Error::DoesNotFit { problem });
        }
        let wrong: Vec<String> = self
            .pairs
            .iter()
            .filter_map(|(path, pair)| {
                let shape = linears.get(path)?;
                let differs = (pair.in_features, pair.out_features) != (shape.in_features, shape.out_features);
                differs.then(|| {
                    format!(
                        "{path} is {}x{} in the adapter and {}x{} in the base",
                        pair.out_features, pair.in_features, shape.out_features, shape.in_features
                    )
                })
            })
            .collect();
        if !wrong.is_empty() {
            return Err(Error::DoesNotFit { problem: list(&wrong) });
        }
        self.check_effect()
    }

    fn check_effect(&self) -> Result<()> {
        let effective = self.pairs.iter().any(|(path, pair)| {
            self.scale_for(path) != 0.0
                && pair.a.iter().any(|value| *value != 0.0)
                && pair.b.iter().any(|value| *value != 0.0)
        });
        if effective {
            return Ok(());
        }
        let problem = "in every module lora_A, lora_B or the scale is zero; it was saved before it was trained".into();
        Err(Error::NoEffect { problem })
    }
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
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::tensor(format!("{path}.{name}"), format!("value {at} is not a finite number")));
        }
    }
    if !config.targets(path) {
        // PEFT would skip this tensor when loading, so the adapter would mean different things in different hands.
        return Err(Error::tensor(path, "the config's target_modules do not name this module"));
    }
    Ok(())
}

fn list<T: AsRef<str>>(items: &[T]) -> String {
    let shown: Vec<&str> = items.iter().take(LISTED).map(AsRef::as_ref).collect();
    match items.len().saturating_sub(LISTED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const PATH: &str = "model.layers.0.self_attn.q_proj";

    pub(crate) fn config(rank: u32) -> AdapterConfig {
        AdapterConfig::new("CAUSAL_LM", rank, 8.0, 0.0, &["q_proj".to_owned()]).expect("valid")
    }

    pub(crate) fn pair(rank: usize, in_features: usize, out_features: usize) -> LoraPair {
        let a = (0..rank * in_features).map(|i| i as f32 * 0.25 - 1.0).collect();
        let b = (0..rank * out_features).map(|i| 0.5 - i as f32 * 0.125).collect();
        LoraPair { a, b, rank, in_features, out_features }
    }

    fn one(path: &str, pair: LoraPair) -> BTreeMap<String, LoraPair> {
        BTreeMap::from([(path.to_owned(), pair)])
    }

    fn base(path: &str, in_features: usize, out_features: usize) -> BTreeMap<String, LinearShape> {
        BTreeMap::from([(path.to_owned(), LinearShape { in_features, out_features })])
    }

    #[test]
    fn a_sound_adapter_fits_the_base_it_was_made_for() {
        let adapter = Adapter::new(config(2), one(PATH, pair(2, 6, 4))).expect("sound");
        assert_eq!(adapter.scale_for(PATH), 4.0);
        assert_eq!(adapter.max_rank(), 2);
        assert_eq!(adapter.size_bytes(), 4 * (12 + 8));
        adapter.check_against(&base(PATH, 6, 4)).expect("fits");
    }

    #[test]
    fn an_adapter_for_another_base_is_refused_with_the_modules() {
        let adapter = Adapter::new(config(2), one(PATH, pair(2, 6, 4))).expect("sound");
        let missing = adapter.check_against(&base("encoder.block.0.q", 6, 4)).expect_err("other modules");
        assert!(matches!(missing, Error::DoesNotFit { .. }) && missing.to_string().contains(PATH), "{missing}");
        let shape = adapter.check_against(&base(PATH, 4, 6)).expect_err("other size");
        assert!(shape.to_string().contains("4x6 in the adapter and 6x4 in the base"), "{shape}");
    }

    #[test]
    fn an_adapter_that_changes_nothing_is_refused() {
        let mut idle = pair(2, 6, 4);
        idle.b.fill(0.0);
        let adapter = Adapter::new(config(2), one(PATH, idle)).expect("well formed");
        let error = adapter.check_against(&base(PATH, 6, 4)).expect_err("no effect");
        assert!(matches!(error, Error::NoEffect { .. }), "{error}");
        assert!(matches!(Adapter::new(config(2), BTreeMap::new()), Err(Error::NoEffect { .. })));
    }

    #[test]
    fn a_pair_with_wrong_rank_size_or_value_is_refused_by_name() {
        let rank = Adapter::new(config(3), one(PATH, pair(2, 6, 4))).expect_err("rank");
        assert!(rank.to_string().contains("rank 2 where the config says 3"), "{rank}");
        let mut short = pair(2, 6, 4);
        short.a.pop();
        assert!(Adapter::new(config(2), one(PATH, short)).is_err(), "A lacks a value");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut poisoned = pair(2, 6, 4);
            poisoned.b[3] = bad;
            let error = Adapter::new(config(2), one(PATH, poisoned)).expect_err("not finite");
            assert!(error.to_string().contains("lora_B: value 3"), "{error}");
        }
    }

    #[test]
    fn a_module_that_the_config_does_not_name_is_refused() {
        let error = Adapter::new(config(2), one("model.layers.0.mlp.up_proj", pair(2, 6, 4))).expect_err("untargeted");
        assert!(error.to_string().contains("target_modules"), "{error}");
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        let names: Vec<String> = (0..9).map(|n| format!("m{n}")).collect();
        assert_eq!(list(&names), "m0, m1, m2, m3, m4 and 4 more");
    }
}
