//! LoRA and its variants: which layers, how strong, from where.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{named, within};
use crate::error::Invalid;

/// The word for every linear layer but the head, as in PEFT.
const ALL_LINEAR: &str = "all-linear";

/// LoRA (arXiv 2106.09685): h = W0·x + (α/r)·B·A·x.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct LoraSpec {
    /// r: rows of A and columns of B.
    pub rank: u32,
    /// α: the update's strength is α/r.
    pub alpha: f32,
    /// Share of a layer's inputs left out in training.
    pub dropout: f32,
    /// Module name endings as in PEFT, e.g. `q_proj`; empty or `all-linear` means every linear layer but the head.
    pub target_modules: Vec<String>,
    /// Instead of names: a regular expression that a module's whole path must match.
    pub target_regex: String,
    /// Module name endings that are left out of what the two above choose.
    pub exclude_modules: Vec<String>,
    /// Layer numbers that are changed, as PEFT's `layers_to_transform`; empty means all.
    pub layers: Vec<u32>,
    /// Ranks of single modules: a name ending, or a regular expression that a path's end must match, as in PEFT.
    pub rank_pattern: BTreeMap<String, u32>,
    /// As `rank_pattern`, for alpha.
    pub alpha_pattern: BTreeMap<String, f32>,
    /// Rank stabilisation (arXiv 2312.03732): α/√r in place of α/r.
    pub rslora: bool,
    /// Weight-decomposed adaptation (arXiv 2402.09353): a magnitude of its own for each output.
    pub dora: bool,
    /// A bias beside B, as PEFT's `lora_bias`.
    pub bias: bool,
    /// Where A and B begin.
    pub init: LoraInit,
    /// LoRA+ (arXiv 2402.12354): the learning rate of B as a multiple of that of A.
    pub plus_ratio: f64,
}

/// Where A and B begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// A uniform, B zero: training begins at the base.
    #[default]
    Default,
    /// PiSSA (arXiv 2404.02948): the weight's principal directions. What is published is a plain adapter of the base.
    Pissa,
}

named!(LoraInit, "lora.init", { Default => "default", Pissa => "pissa" });

impl Default for LoraSpec {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: Vec::new(),
            target_regex: String::new(),
            exclude_modules: Vec::new(),
            layers: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            rslora: false,
            dora: false,
            bias: false,
            init: LoraInit::Default,
            plus_ratio: 1.0,
        }
    }
}

impl LoraSpec {
    /// Whether every linear layer but the head is meant.
    pub fn targets_all(&self) -> bool {
        self.target_regex.is_empty() && self.target_modules.iter().all(|name| name == ALL_LINEAR)
    }

    /// # Errors
    /// Names the field, its value and its limits.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("lora.rank", self.rank, 1, 1024)?;
        within("lora.alpha", self.alpha, 1e-3, 65536.0)?;
        within("lora.dropout", self.dropout, 0.0, 0.9)?;
        within("lora.plus_ratio", self.plus_ratio, 1e-3, 1e3)?;
        for (field, names) in
            [("lora.target_modules", &self.target_modules), ("lora.exclude_modules", &self.exclude_modules)]
        {
            if let Some(empty) = names.iter().position(|name| name.trim().is_empty()) {
                return Err(Invalid::new(format!("{field}[{empty}]"), "empty; name a module such as q_proj"));
            }
        }
        if self.target_modules.len() > 1 && self.target_modules.iter().any(|name| name == ALL_LINEAR) {
            return Err(Invalid::new("lora.target_modules", "all-linear stands alone; other names add nothing to it"));
        }
        if !self.target_regex.is_empty() && !self.target_modules.is_empty() {
            return Err(Invalid::new("lora.target_regex", "stands in the place of target_modules; leave one out"));
        }
        for (pattern, rank) in &self.rank_pattern {
            within(&format!("lora.rank_pattern[{pattern}]"), *rank, 1, 1024)?;
        }
        for (pattern, alpha) in &self.alpha_pattern {
            within(&format!("lora.alpha_pattern[{pattern}]"), *alpha, 1e-3, 65536.0)?;
        }
        if self.dora && self.dropout > 0.0 {
            return Err(Invalid::new("lora.dora", format!("does not go with lora.dropout {}; use 0", self.dropout)));
        }
        if self.dora && self.bias {
            return Err(Invalid::new(
                "lora.dora",
                "does not go with lora.bias, which PEFT knows no way to load; leave one out",
            ));
        }
        if self.init == LoraInit::Pissa {
            for (taken, name) in [(self.dora, "dora"), (self.bias, "bias"), (self.dropout > 0.0, "dropout")] {
                if taken {
                    return Err(Invalid::new("lora.init", format!("pissa does not go with lora.{name}; use default")));
                }
            }
        }
        Ok(())
    }
}
