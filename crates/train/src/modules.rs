//! Which linear layers of the base get a pair of matrices.

use std::collections::{BTreeMap, BTreeSet};

use tailor_domain::{Invalid, LoraSpec};
use tailor_models::Base;
use tailor_peft::{AdapterConfig, LinearShape, LoraPair};

use crate::error::Error;

/// The adapter to be trained: its config and the layers it changes, in the order of their paths.
pub struct Modules {
    pub config: AdapterConfig,
    pub shapes: BTreeMap<String, LinearShape>,
}

impl Modules {
    /// # Errors
    /// A name that no linear layer of the base ends in.
    pub fn choose(base: &Base, spec: &LoraSpec, base_name: &str) -> Result<Self, Error> {
        let linears = base.linear_shapes();
        let known: BTreeSet<String> = linears.keys().map(|path| last_name(path).to_owned()).collect();
        let names: Vec<String> = match spec.target_modules.is_empty() {
            true => known.iter().cloned().collect(),
            false => spec.target_modules.clone(),
        };
        for (index, name) in names.iter().enumerate() {
            let found = linears.keys().any(|path| path == name || path.ends_with(&format!(".{name}")));
            if !found {
                let known = known.into_iter().collect::<Vec<_>>().join(", ");
                let problem = format!("no linear layer of the base ends in {name:?}; it has {known}");
                return Err(Invalid::new(format!("lora.target_modules[{index}]"), problem).into());
            }
        }
        let task = base.family().task_type();
        let config =
            AdapterConfig::new(task, spec.rank, widen(spec.alpha), widen(spec.dropout), &names)?.with_base(base_name);
        let shapes = linears.into_iter().filter(|(path, _)| config.targets(path)).collect();
        Ok(Self { config, shapes })
    }

    /// The finished adapter from the values of A and B of each module, in the order of [`Self::shapes`].
    ///
    /// # Errors
    /// The values do not fit, or are not finite.
    pub fn adapter(self, values: Vec<Vec<f32>>) -> Result<tailor_peft::Adapter, Error> {
        let rank = self.config.r as usize;
        let mut values = values.into_iter();
        let mut pairs = BTreeMap::new();
        for (path, LinearShape { in_features, out_features }) in self.shapes {
            let (a, b) = (values.next().unwrap_or_default(), values.next().unwrap_or_default());
            pairs.insert(path, LoraPair { a, b, rank, in_features, out_features });
        }
        Ok(tailor_peft::Adapter::new(self.config, pairs)?)
    }
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The f64 that a person would write for this f32: 0.1, not 0.10000000149.
fn widen(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_written_as_it_was_given() {
        assert_eq!(widen(0.1), 0.1);
        assert_eq!(widen(32.0), 32.0);
    }
}
