//! How PEFT decides which modules a config speaks of. Differs from PEFT only in the regex engine: ours has no
//! backtracking (so no hostile pattern can hang it) and refuses look-around by name.

use regex::Regex;

use crate::error::{Error, Result};

/// A compiled pattern is at most this large; a hostile `a{9999}{9999}` is refused instead of compiled.
const MAX_COMPILED_BYTES: usize = 1 << 20;

pub(crate) fn compile(field: &str, pattern: &str) -> Result<Regex> {
    regex::RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED_BYTES)
        .build()
        .map_err(|error| Error::config(field, format!("pattern {pattern:?} cannot be used: {error}")))
}

/// The keys of `rank_pattern` or `alpha_pattern`, in the order of the file: the first that matches counts, as in PEFT's
/// `get_pattern_key`.
#[derive(Debug, Clone)]
pub(crate) struct Patterns<T> {
    entries: Vec<(String, Regex, T)>,
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T: Copy> Patterns<T> {
    pub fn compile(field: &str, entries: Vec<(String, T)>) -> Result<Self> {
        let compiled = entries
            .into_iter()
            .map(|(key, value)| Ok((key.clone(), compile(field, &format!(r"^(.*\.)?({key})$"))?, value)))
            .collect::<Result<_>>()?;
        Ok(Self { entries: compiled })
    }

    pub fn find(&self, path: &str) -> Option<T> {
        self.entries.iter().find(|(_, regex, _)| regex.is_match(path)).map(|(_, _, value)| *value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, T)> {
        self.entries.iter().map(|(key, _, value)| (key.as_str(), *value))
    }
}

/// Equal to `name`, or ending in `.name`.
pub(crate) fn ends_with_module(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// The first numbered part of a path that has a name before it and a part after: `model.layers.12.mlp.up_proj` → 12.
/// With names given, the number must follow one of them.
pub(crate) fn layer_index(path: &str, names: &[String]) -> Option<u64> {
    let parts: Vec<&str> = path.split('.').collect();
    parts.windows(3).enumerate().find_map(|(at, window)| {
        let [name, number, _] = window else { return None };
        // PEFT's pattern without names wants something before the name too.
        let named = if names.is_empty() { at > 0 } else { names.iter().any(|wanted| wanted == name) };
        if named && number.bytes().all(|byte| byte.is_ascii_digit()) { number.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_matches_whole_parts_only() {
        assert!(ends_with_module("model.layers.0.self_attn.q_proj", "q_proj"));
        assert!(ends_with_module("q_proj", "q_proj"));
        assert!(ends_with_module("encoder.block.0.layer.0.SelfAttention.q", "SelfAttention.q"));
        assert!(!ends_with_module("model.layers.0.mlp.xq_proj", "q_proj"));
    }

    #[test]
    fn the_first_pattern_in_file_order_wins() {
        let patterns = Patterns::compile("rank_pattern", vec![(r"layers\.0\.*q_proj".into(), 1), ("q_proj".into(), 2)])
            .expect("valid patterns");
        assert_eq!(patterns.find("model.layers.3.self_attn.q_proj"), Some(2));
        assert_eq!(patterns.find("model.layers.3.self_attn.k_proj"), None);
        let ordered =
            Patterns::compile("rank_pattern", vec![(r".*\.0\..*q_proj".into(), 1), ("q_proj".into(), 2)]).expect("ok");
        assert_eq!(ordered.find("model.layers.0.self_attn.q_proj"), Some(1));
    }

    #[test]
    fn a_pattern_that_cannot_be_used_is_named() {
        for bad in ["(?=q_proj)", "a{9999}{9999}", "(unclosed"] {
            let error = Patterns::compile("alpha_pattern", vec![(bad.to_owned(), 1.0)]).expect_err(bad);
            assert!(error.to_string().contains("alpha_pattern"), "{error}");
        }
    }

    #[test]
    fn the_layer_index_is_the_first_number_in_the_path() {
        assert_eq!(layer_index("model.layers.12.mlp.experts.3.up_proj", &[]), Some(12));
        assert_eq!(layer_index("encoder.block.4.layer.1.DenseReluDense.wo", &["block".into()]), Some(4));
        assert_eq!(layer_index("encoder.block.4.layer.1.DenseReluDense.wo", &["layers".into()]), None);
        assert_eq!(layer_index("lm_head", &[]), None);
    }
}
