//! What an adapter is checked against: the sizes of a base's parameters, known without loading it.

use std::collections::BTreeMap;

use crate::adapter::Adapter;
use crate::error::{Error, Result, clip};

/// How many modules a message lists before it only counts.
const LISTED: usize = 5;
/// Where a base keeps the embeddings of its input.
const EMBEDDINGS: [&str; 2] = ["model.embed_tokens.weight", "shared.weight"];

/// The size of a base's linear layer: `x` has `in_features`, `W·x` has `out_features`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    pub in_features: usize,
    pub out_features: usize,
}

/// The parameters of a base that an adapter can change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaseShapes {
    /// Layers that can take LoRA, by module path.
    pub linears: BTreeMap<String, LinearShape>,
    /// Tensors that an adapter may bring its own of, by parameter path.
    pub tensors: BTreeMap<String, Vec<usize>>,
}

impl BaseShapes {
    /// From the tensors of a checkpoint: those that it keeps once under one name and a model uses in several places are
    /// put under the name of each place, where PEFT finds them.
    pub fn new(mut linears: BTreeMap<String, LinearShape>, mut tensors: BTreeMap<String, Vec<usize>>) -> Self {
        for (path, shape) in &linears {
            tensors.insert(format!("{path}.weight"), vec![shape.out_features, shape.in_features]);
        }
        let places: &[(&str, &str)] = &[
            ("model.embed_tokens.weight", "lm_head.weight"),
            ("shared.weight", "encoder.embed_tokens.weight"),
            ("shared.weight", "decoder.embed_tokens.weight"),
            ("shared.weight", "lm_head.weight"),
        ];
        for (stored, place) in places {
            if let Some(shape) = tensors.get(*stored).cloned() {
                tensors.entry((*place).to_owned()).or_insert(shape);
            }
        }
        // A tied head has no tensor of its own, but is a layer all the same.
        if let Some([out_features, in_features]) = tensors.get("lm_head.weight").map(Vec::as_slice) {
            let shape = LinearShape { in_features: *in_features, out_features: *out_features };
            linears.entry("lm_head".to_owned()).or_insert(shape);
        }
        Self { linears, tensors }
    }
}

impl Adapter {
    /// Checks that the adapter belongs on this base and changes something there. A server that skips this answers with the
    /// plain base and says nothing.
    ///
    /// # Errors
    /// `DoesNotFit` lists modules and parameters the base lacks or has in another size; `NoEffect` when nothing changes an
    /// output. (A DoRA adapter's effect depends on the base's values: whoever has them looks again.)
    pub fn check_against(&self, base: &BaseShapes) -> Result<()> {
        let tensors = self.tensors();
        let modules = tensors.pairs.keys().filter(|path| !base.linears.contains_key(*path));
        let parameters = tensors.whole.keys().filter(|path| !base.tensors.contains_key(*path));
        let missing: Vec<&str> = modules.chain(parameters).map(String::as_str).collect();
        if !missing.is_empty() {
            let all = tensors.pairs.len() + tensors.whole.len();
            let problem = format!("{} of its {all} modules are not in the base: {}", missing.len(), list(&missing));
            return Err(Error::DoesNotFit { problem });
        }
        let pairs = tensors.pairs.iter().filter_map(|(path, pair)| {
            let shape = base.linears.get(path)?;
            let differs = (pair.in_features, pair.out_features) != (shape.in_features, shape.out_features);
            differs.then(|| {
                format!(
                    "{path} is {}x{} in the adapter and {}x{} in the base",
                    pair.out_features, pair.in_features, shape.out_features, shape.in_features
                )
            })
        });
        let whole = tensors.whole.iter().filter_map(|(path, own)| {
            let shape = base.tensors.get(path).filter(|shape| **shape != own.shape)?;
            Some(format!("{path} is {} in the adapter and {} in the base", sides(&own.shape), sides(shape)))
        });
        let wrong: Vec<String> = pairs.chain(whole).collect();
        if !wrong.is_empty() {
            return Err(Error::DoesNotFit { problem: list(&wrong) });
        }
        self.check_prompt_against(base)?;
        self.check_effect()
    }

    fn check_prompt_against(&self, base: &BaseShapes) -> Result<()> {
        let Some(prompt) = &self.tensors().prompt else { return Ok(()) };
        let embedding = EMBEDDINGS.iter().find_map(|name| base.tensors.get(*name));
        let problem = match embedding.map(Vec::as_slice) {
            Some([_, width]) if *width == prompt.token_dim => return Ok(()),
            Some(shape) => {
                format!("its virtual tokens have {} values, the base's embedding is {}", prompt.token_dim, sides(shape))
            }
            None => format!("the base has no embedding under any of {}", EMBEDDINGS.join(", ")),
        };
        Err(Error::DoesNotFit { problem })
    }
}

fn sides(shape: &[usize]) -> String {
    clip(&shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x"), 100)
}

fn list<T: AsRef<str>>(items: &[T]) -> String {
    let shown: Vec<&str> = items.iter().take(LISTED).map(AsRef::as_ref).collect();
    match items.len().saturating_sub(LISTED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::tests::{PATH, config, one, pair};

    fn base(path: &str, in_features: usize, out_features: usize) -> BaseShapes {
        let linears = BTreeMap::from([(path.to_owned(), LinearShape { in_features, out_features })]);
        BaseShapes::new(linears, BTreeMap::new())
    }

    #[test]
    fn a_sound_adapter_fits_the_base_it_was_made_for() {
        let adapter = Adapter::new(config(2), one(PATH, pair(2, 6, 4))).expect("sound");
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
    fn a_tensor_kept_once_counts_in_every_place_that_uses_it() {
        let stored = |name: &str| BTreeMap::from([(name.to_owned(), vec![8, 4])]);
        let tied = BaseShapes::new(BTreeMap::new(), stored("model.embed_tokens.weight"));
        assert_eq!(tied.tensors["lm_head.weight"], [8, 4]);
        assert_eq!(tied.linears["lm_head"], LinearShape { in_features: 4, out_features: 8 });
        let t5 = BaseShapes::new(BTreeMap::new(), stored("shared.weight"));
        assert!(
            ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
                .iter()
                .all(|place| t5.tensors[*place] == [8, 4])
        );
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        let names: Vec<String> = (0..9).map(|n| format!("m{n}")).collect();
        assert_eq!(list(&names), "m0, m1, m2, m3, m4 and 4 more");
    }
}
