//! How PEFT decides which modules a config speaks of. Differs from PEFT only in the regex engine: ours has no
//! backtracking (so no hostile pattern can hang it) and refuses look-around by name.

use regex::Regex;

use crate::error::{Error, Result, clip};

/// A compiled pattern is at most this large; a hostile `a{9999}{9999}` is refused instead of compiled.
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// All patterns of a field together. What the engine keeps beside them is some times as much.
const MAX_FIELD_BYTES: usize = 4 << 20;
/// What a message shows of a pattern, and of what the engine says about it: that quotes the pattern again.
const SHOWN: usize = 200;

pub(crate) fn compile(field: &str, pattern: &str) -> Result<Regex> {
    compile_one_of(1, field, pattern)
}

/// One of a field's `count` patterns.
fn compile_one_of(count: usize, field: &str, pattern: &str) -> Result<Regex> {
    let limit = MAX_COMPILED_BYTES.min(MAX_FIELD_BYTES / count.max(1));
    let refused = |error: regex::Error| {
        let (pattern, error) = (clip(pattern, SHOWN), error.to_string());
        let start = error.len().saturating_sub(SHOWN);
        let reason = error.char_indices().find(|(at, _)| *at >= start).map_or("", |(at, _)| &error[at..]);
        Error::config(field, format!("pattern {pattern:?} cannot be used: {reason}"))
    };
    // What the engine may keep of its own work beside the pattern, once for each direction.
    regex::RegexBuilder::new(pattern).size_limit(limit).dfa_size_limit(limit).build().map_err(refused)
}

/// The keys of `rank_pattern` or `alpha_pattern`, in the order of the file: the first that matches counts, as in PEFT's
/// `get_pattern_key`.
#[derive(Debug, Clone)]
pub(crate) struct Patterns<T> {
    entries: Vec<(String, Key, T)>,
}

/// PEFT's `^(.*\.)?(key)$`.
#[derive(Debug, Clone)]
enum Key {
    /// The path of a module, as most keys are: an adapter may have one for each of a thousand, and a compiled pattern
    /// takes 50 KB. Its dots stand for any character, as in the pattern.
    Path,
    Pattern(Regex),
}

impl Key {
    fn is_path(key: &str) -> bool {
        key.bytes().all(|letter| letter.is_ascii_alphanumeric() || letter == b'_' || letter == b'.')
    }

    fn is_match(&self, key: &str, path: &str) -> bool {
        let Self::Path = self else {
            return matches!(self, Self::Pattern(regex) if regex.is_match(path));
        };
        let mut rest = path.chars();
        let same = |wanted: char, found: char| wanted == found || wanted == '.' && found != '\n';
        if !key.chars().rev().all(|wanted| rest.next_back().is_some_and(|found| same(wanted, found))) {
            return false;
        }
        let head = rest.as_str();
        head.is_empty() || head.ends_with('.') && !head.contains('\n')
    }
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T: Copy> Patterns<T> {
    pub fn compile(field: &str, entries: Vec<(String, T)>) -> Result<Self> {
        let count = entries.iter().filter(|(key, _)| !Key::is_path(key)).count();
        let compile = |key: String| match Key::is_path(&key) {
            true => Ok((key, Key::Path)),
            false => {
                let regex = compile_one_of(count, field, &format!(r"^(.*\.)?({key})$"))?;
                Ok((key, Key::Pattern(regex)))
            }
        };
        let compiled =
            entries.into_iter().map(|(key, value)| compile(key).map(|(key, compiled)| (key, compiled, value)));
        Ok(Self { entries: compiled.collect::<Result<_>>()? })
    }

    pub fn find(&self, path: &str) -> Option<T> {
        self.entries.iter().find(|(key, compiled, _)| compiled.is_match(key, path)).map(|(_, _, value)| *value)
    }

    /// A key that matches none of the paths.
    pub fn unused<'a>(&self, paths: impl Iterator<Item = &'a String> + Clone) -> Option<String> {
        let is_unused = |key: &str, compiled: &Key| !paths.clone().any(|path| compiled.is_match(key, path));
        self.entries.iter().find(|(key, compiled, _)| is_unused(key, compiled)).map(|(key, _, _)| key.clone())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, T)> {
        self.entries.iter().map(|(key, _, value)| (key.as_str(), *value))
    }
}

/// Equal to `name`, or ending in `.name`.
pub(crate) fn ends_with_module(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// Where a path says which layer it is in: its first number with a name before it and a part after,
/// `model.layers.12.mlp.up_proj` → 12. With `layers_pattern`, the number after the first of those that match.
#[derive(Debug, Clone)]
pub(crate) struct LayerIndex(Vec<Regex>);

impl LayerIndex {
    pub fn compile(layers_pattern: &[String]) -> Result<Self> {
        const FIELD: &str = "layers_pattern";
        let named =
            |name: &String| compile_one_of(layers_pattern.len(), FIELD, &format!(r"^(?:|.*?\.){name}\.(\d+)\."));
        let regexes = match layers_pattern {
            // PEFT wants something before the name here.
            [] => vec![compile(FIELD, r"^.*?\.[^.]*\.(\d+)\.")?],
            names => names.iter().map(named).collect::<Result<_>>()?,
        };
        Ok(Self(regexes))
    }

    pub fn of(&self, path: &str) -> Option<u64> {
        let captures = self.0.iter().find_map(|regex| regex.captures(path))?;
        // Counted from the end, should a pattern of the config hold groups of its own.
        captures.iter().last()??.as_str().parse().ok()
    }
}

/// The names of `modules_to_save`. PEFT reads them in two ways, and so must we.
#[derive(Debug, Clone)]
pub(crate) struct SavedModules {
    names: Vec<String>,
    keep_off: Vec<Regex>,
}

impl SavedModules {
    pub fn compile(names: Vec<String>) -> Result<Self> {
        let keep_off =
            |name: &String| compile_one_of(names.len(), "modules_to_save", &format!(r"^(^|.*\.){name}($|\..*)"));
        Ok(Self { keep_off: names.iter().map(keep_off).collect::<Result<_>>()?, names })
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether the parameter at `path` is inside a module whose path ends in one of the names: anywhere, not only at a
    /// dot, so that `norm` takes `input_layernorm` as well.
    pub fn wrap(&self, path: &str) -> bool {
        let modules = path.match_indices('.').map(|(at, _)| &path[..at]);
        modules.into_iter().any(|module| self.names.iter().any(|name| module.ends_with(name.as_str())))
    }

    /// Whether `path` has one of the names, as patterns of whole parts, in it: no LoRA is put there.
    pub fn keep_off(&self, path: &str) -> bool {
        self.keep_off.iter().any(|regex| regex.is_match(path))
    }
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
    fn a_path_matches_as_its_pattern_would() {
        let paths =
            ["a.b", "x.a.b", "xa.b", "a.b.c", "ab", "a/b", "ü.a\u{1F642}b", "a\nb", "x\n.a.b", "", ".", "b", ".b"];
        for key in ["a.b", "b", ".", "", "a..b", ".b"] {
            assert!(Key::is_path(key));
            let regex = compile("rank_pattern", &format!(r"^(.*\.)?({key})$")).expect("a pattern");
            for path in paths {
                assert_eq!(Key::Path.is_match(key, path), regex.is_match(path), "{key:?} on {path:?}");
            }
        }
        for key in ["a|b", "a\\.b", "a+", "a-b", "ü"] {
            assert!(!Key::is_path(key), "{key}");
        }
    }

    #[test]
    fn a_key_for_every_module_of_the_largest_model_is_taken_and_a_thousand_patterns_are_not() {
        let key = |layer: usize| (format!("model.layers.{layer}.self_attn.q_proj"), layer);
        let patterns = Patterns::compile("rank_pattern", (0..4096).map(key).collect()).expect("paths");
        assert_eq!(patterns.find("base.model.layers.4095.self_attn.q_proj"), Some(4095));
        let hostile = (0..1000).map(|i| (format!(r"\w+{i}"), i)).collect();
        let error = Patterns::compile("rank_pattern", hostile).expect_err("too much").to_string();
        assert!(error.contains("rank_pattern") && error.contains("size limit"), "{error}");
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
        let of = |path: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            LayerIndex::compile(&names).expect("valid patterns").of(path)
        };
        assert_eq!(of("model.layers.12.mlp.experts.3.up_proj", &[]), Some(12));
        assert_eq!(of("encoder.block.4.layer.1.DenseReluDense.wo", &["block"]), Some(4));
        assert_eq!(of("encoder.block.4.layer.1.DenseReluDense.wo", &["layers"]), None);
        assert_eq!(of("encoder.block.4.layer.1.DenseReluDense.wo", &["layer", "block"]), Some(1), "the first pattern");
        assert_eq!(
            of("encoder.block.4.layer.1.DenseReluDense.wo", &["(block|stage)"]),
            Some(4),
            "a regular expression"
        );
        assert_eq!(of("lm_head", &[]), None);
    }

    #[test]
    fn saved_modules_are_found_by_the_end_of_their_path_and_keep_lora_off_whole_parts() {
        let saved = SavedModules::compile(vec!["norm".into(), "lm_head".into(), "layers.0.mlp".into()]).expect("names");
        for path in ["lm_head.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"] {
            assert!(saved.wrap(path), "{path}");
        }
        assert!(saved.wrap("model.layers.0.mlp.up_proj.weight") && !saved.wrap("model.layers.1.mlp.up_proj.weight"));
        assert!(!saved.wrap("norm"), "a parameter is in a module");
        assert!(saved.keep_off("model.layers.0.mlp.up_proj") && saved.keep_off("lm_head"));
        assert!(!saved.keep_off("model.layers.1.mlp.up_proj") && !saved.keep_off("model.layers.1.input_layernorm"));
    }
}
