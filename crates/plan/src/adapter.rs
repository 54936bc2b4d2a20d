//! Which linear layers get a pair of matrices, and how many values that makes: PEFT's rules, by way of `tailor-peft`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tailor_domain::{Invalid, LoraSpec, Recipe};
use tailor_peft::AdapterConfig;

use crate::shape::Shape;
use crate::{Error, Result};

/// The rank at each linear layer, 0 where it stays as it is, in the order of [`Shape::linears`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    ranks: Vec<u64>,
    /// On the output layer.
    head_rank: u64,
    values: u64,
    dropout: bool,
    /// Virtual tokens in LoRA's place.
    virtual_tokens: u64,
}

const HEAD: &str = "lm_head";

impl Adapter {
    /// # Errors
    /// A name, pattern or layer number that chooses no linear layer of the base.
    pub fn of(shape: &Shape, recipe: &Recipe) -> Result<Self> {
        let spec = &recipe.lora;
        if recipe.prompt_tuning.is_on() {
            let virtual_tokens = u64::from(recipe.prompt_tuning.virtual_tokens);
            let values = virtual_tokens * shape.hidden;
            return Ok(Self { ranks: Vec::new(), head_rank: 0, values, dropout: false, virtual_tokens });
        }
        check_names(shape, spec)?;
        let config = config(shape, spec)?;
        let rank = |path: &str| if config.targets(path) { u64::from(config.rank_for(path)) } else { 0 };
        let ranks: Vec<u64> = shape.linears.iter().map(|linear| rank(&linear.path)).collect();
        // `all-linear` leaves the head alone.
        let head_rank = if spec.targets_all() { 0 } else { rank(HEAD) };
        let extra = u64::from(spec.dora) + u64::from(spec.bias);
        let pair = |rank: u64, input: u64, out: u64| match rank {
            0 => 0,
            rank => rank * (input + out) + extra * out,
        };
        let of_layers = shape.linears.iter().zip(&ranks).map(|(linear, rank)| pair(*rank, linear.input, linear.out));
        let values = of_layers.sum::<u64>() + pair(head_rank, shape.hidden, shape.vocab);
        if values == 0 {
            let problem = format!("the settings choose no linear layer; the base has {}", names(shape));
            return Err(Invalid::new("lora", problem).into());
        }
        Ok(Self { ranks, head_rank, values, dropout: spec.dropout > 0.0, virtual_tokens: 0 })
    }

    /// Trainable values.
    pub fn values(&self) -> u64 {
        self.values
    }

    pub fn rank(&self, linear: usize) -> u64 {
        self.ranks.get(linear).copied().unwrap_or(0)
    }

    pub fn head_rank(&self) -> u64 {
        self.head_rank
    }

    /// 0 where LoRA is trained.
    pub fn virtual_tokens(&self) -> u64 {
        self.virtual_tokens
    }

    pub fn dropout(&self) -> bool {
        self.dropout
    }
}

fn config(shape: &Shape, spec: &LoraSpec) -> Result<AdapterConfig> {
    let names: Vec<String> = match (spec.target_regex.is_empty(), spec.targets_all()) {
        (false, _) => vec![spec.target_regex.clone()],
        (true, true) => {
            let all: BTreeSet<_> = shape.linears.iter().map(|linear| last_name(&linear.path).to_owned()).collect();
            all.into_iter().collect()
        }
        (true, false) => spec.target_modules.clone(),
    };
    let refused = |error: tailor_peft::Error| Error::from(Invalid::new("lora", error.to_string()));
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
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
    let config =
        AdapterConfig::new(shape.family.task_type(), spec.rank, f64::from(spec.alpha), f64::from(spec.dropout), &names);
    config.and_then(|config| config.with_fields(fields)).map_err(refused)
}

/// Each module name must be that of some linear layer, as the trainer holds it to.
fn check_names(shape: &Shape, spec: &LoraSpec) -> Result<()> {
    let is_there = |name: &String| {
        let ends_in = |path: &str| path == name || path.ends_with(&format!(".{name}"));
        ends_in(HEAD) || shape.linears.iter().any(|linear| ends_in(&linear.path))
    };
    let targets = if spec.targets_all() { &[][..] } else { spec.target_modules.as_slice() };
    for (field, given) in [("target_modules", targets), ("exclude_modules", spec.exclude_modules.as_slice())] {
        if let Some(at) = given.iter().position(|name| !is_there(name)) {
            let problem = format!("no linear layer of the base ends in {:?}; it has {}", given[at], names(shape));
            return Err(Invalid::new(format!("lora.{field}[{at}]"), problem).into());
        }
    }
    Ok(())
}

fn names(shape: &Shape) -> String {
    let names: BTreeSet<_> = shape.linears.iter().map(|linear| last_name(&linear.path)).collect();
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    format!("{names} and the head {HEAD}")
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}
