//! From a job's settings to the config of the adapter that it will make. Who plans a job and who trains it read them here, so
//! that both mean the same layers and refuse the same words.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tailor_domain::{Invalid, LoraSpec};

use super::AdapterConfig;

const HEAD: &str = "lm_head";

impl AdapterConfig {
    /// The config for a base whose linear layers are at `paths`, the head among them.
    ///
    /// # Errors
    /// A name, pattern or layer number that none of them answers to, by field; settings that choose no layer.
    pub fn of_job(task_type: &str, spec: &LoraSpec, paths: &[&str]) -> Result<Self, Invalid> {
        let known: BTreeSet<&str> = paths.iter().map(|path| last_name(path)).collect();
        let list = || known.iter().copied().collect::<Vec<_>>().join(", ");
        let names: Vec<String> = match spec.targets_all() {
            true => known.iter().filter(|name| **name != HEAD).map(|name| (*name).to_owned()).collect(),
            false => spec.target_modules.clone(),
        };
        let ends_in = |path: &str, name: &str| path == name || path.ends_with(&format!(".{name}"));
        for (field, names) in [("target_modules", &names), ("exclude_modules", &spec.exclude_modules)] {
            if let Some(at) = names.iter().position(|name| !paths.iter().any(|path| ends_in(path, name))) {
                let problem = format!("no linear layer of the base ends in {:?}; it has {}", names[at], list());
                return Err(Invalid::new(format!("lora.{field}[{at}]"), problem));
            }
        }
        for layer in &spec.layers {
            if !paths.iter().any(|path| layer_number(path) == Some(*layer)) {
                let last = paths.iter().filter_map(|path| layer_number(path)).max().unwrap_or(0);
                let problem = format!("{layer} is no layer of the base; it has 0 to {last}");
                return Err(Invalid::new("lora.layers", problem));
            }
        }
        // In `fields` a regular expression is one, and no longer a name.
        let names = if spec.target_regex.is_empty() { names } else { vec![spec.target_regex.clone()] };
        let config = Self::new(task_type, spec.rank, decimal(spec.alpha), decimal(spec.dropout), &names)
            .and_then(|config| config.with_fields(fields(spec)))
            .map_err(|error| Invalid::new("lora", error.to_string()))?;
        let chosen: Vec<String> = paths.iter().filter(|path| config.targets(path)).map(ToString::to_string).collect();
        if chosen.is_empty() {
            return Err(Invalid::new("lora", format!("the settings choose no linear layer; the base has {}", list())));
        }
        if let Some((field, pattern)) = config.unused_pattern(chosen.iter()) {
            let problem = format!("{pattern:?} matches none of the chosen modules");
            return Err(Invalid::new(format!("lora.{field}"), problem));
        }
        Ok(config)
    }
}

/// The fields of PEFT's config that differ from those of a plain adapter.
fn fields(spec: &LoraSpec) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    if !spec.target_regex.is_empty() {
        set("target_modules", json!(spec.target_regex));
    }
    if !spec.exclude_modules.is_empty() {
        set("exclude_modules", json!(spec.exclude_modules));
    }
    if !spec.layers.is_empty() {
        set("layers_to_transform", json!(spec.layers));
    }
    if !spec.rank_pattern.is_empty() {
        set("rank_pattern", json!(spec.rank_pattern));
    }
    if !spec.alpha_pattern.is_empty() {
        let alphas: Map<_, _> = spec.alpha_pattern.iter().map(|(key, a)| (key.clone(), decimal(*a).into())).collect();
        set("alpha_pattern", alphas.into());
    }
    for (name, is_on) in [("use_rslora", spec.rslora), ("use_dora", spec.dora), ("lora_bias", spec.bias)] {
        if is_on {
            set(name, json!(true));
        }
    }
    fields
}

/// The first number in a module's path. In an encoder-decoder block 3 of either stack is layer 3.
pub fn layer_number(path: &str) -> Option<u32> {
    path.split('.').find_map(|part| part.parse().ok())
}

/// The f64 that a person would write for this f32: 0.1, not 0.10000000149.
pub fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 3] = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", HEAD];

    #[test]
    fn all_linear_layers_are_all_but_the_head_and_the_head_comes_by_its_name() {
        let targets = |spec: &LoraSpec| {
            let config = AdapterConfig::of_job("CAUSAL_LM", spec, &PATHS).expect("valid");
            PATHS.map(|path| config.targets(path))
        };
        assert_eq!(targets(&LoraSpec::default()), [true, true, false]);
        let head = LoraSpec { target_modules: vec![HEAD.into()], ..LoraSpec::default() };
        assert_eq!(targets(&head), [false, false, true]);
        let layer = LoraSpec { layers: vec![1], ..LoraSpec::default() };
        assert_eq!(targets(&layer), [false, true, false]);
    }

    #[test]
    fn what_no_layer_answers_to_is_refused_by_field() {
        let refused =
            |spec: LoraSpec| AdapterConfig::of_job("CAUSAL_LM", &spec, &PATHS).expect_err("refused").to_string();
        let named = refused(LoraSpec { target_modules: vec!["q_proj".into(), "query".into()], ..LoraSpec::default() });
        assert_eq!(
            named,
            "lora.target_modules[1]: no linear layer of the base ends in \"query\"; it has lm_head, q_proj, up_proj"
        );
        let layer = refused(LoraSpec { layers: vec![7], ..LoraSpec::default() });
        assert_eq!(layer, "lora.layers: 7 is no layer of the base; it has 0 to 1");
        let none = refused(LoraSpec { target_regex: "nothing".into(), ..LoraSpec::default() });
        assert!(none.starts_with("lora: the settings choose no linear layer"), "{none}");
    }

    #[test]
    fn a_setting_is_written_as_it_was_given() {
        assert_eq!((decimal(0.1), decimal(32.0)), (0.1, 32.0));
    }

    #[test]
    fn a_layers_number_is_the_first_in_its_path() {
        assert_eq!(layer_number("model.layers.12.self_attn.q_proj"), Some(12));
        assert_eq!(layer_number("decoder.block.3.layer.1.EncDecAttention.q"), Some(3));
        assert_eq!(layer_number(HEAD), None);
    }
}
