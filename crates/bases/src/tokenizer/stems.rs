//! Stem and ending of words that the dictionary lists as forms of one another.

use std::collections::BTreeMap;

use tailor_corpus::words::NAMES;
use tailor_corpus::{Dialect, dictionary};

/// Forms that share fewer letters are words of their own: `go` and `goes`, `sing` and `sang`.
const SHORTEST_STEM: usize = 3;

/// Each word that is written with two pieces: `walks` → (`walk`, `s`), `danced` → (`danc`, `ed`), `Anna` → (`A`, `nna`).
///
/// The headword itself may be a stem without an ending (`walk`) or have one (`danc`, `e`).
pub fn split_words() -> BTreeMap<String, (String, String)> {
    let mut split = BTreeMap::new();
    for entry in [Dialect::Us, Dialect::Gb].into_iter().flat_map(dictionary::entries) {
        let mut alike: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for form in entry.split(", ") {
            if let Some(start) = form.get(..SHORTEST_STEM) {
                let forms = alike.entry(start).or_default();
                if !forms.contains(&form) {
                    forms.push(form);
                }
            }
        }
        for forms in alike.into_values().filter(|forms| forms.len() > 1) {
            let stem = shared_start(&forms);
            for form in forms {
                split.entry(form.to_owned()).or_insert_with(|| (stem.to_owned(), form[stem.len()..].to_owned()));
            }
        }
    }
    // A name and its misspelling with a small letter have all but the first piece in common.
    for name in NAMES {
        for name in [(*name).to_owned(), name.to_lowercase()] {
            let (initial, rest) = name.split_at(1);
            split.insert(name.clone(), (initial.to_owned(), rest.to_owned()));
        }
    }
    split
}

fn shared_start<'a>(words: &[&'a str]) -> &'a str {
    let Some((first, others)) = words.split_first() else { return "" };
    let length = others.iter().fold(first.len(), |length, other| {
        first.bytes().zip(other.bytes()).take(length).take_while(|(a, b)| a == b).count()
    });
    &first[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_have_their_stem_in_common() {
        let split = split_words();
        let pieces = |word: &str| split.get(word).map(|(stem, ending)| (stem.as_str(), ending.as_str()));
        assert_eq!(pieces("walk"), Some(("walk", "")));
        assert_eq!(pieces("walked"), Some(("walk", "ed")));
        assert_eq!(pieces("dancing"), Some(("danc", "ing")));
        assert_eq!(pieces("dance"), Some(("danc", "e")));
        assert_eq!(pieces("lorries"), Some(("lorr", "ies")));
        assert_eq!(pieces("goes"), None);
        assert_eq!(pieces("anna"), Some(("a", "nna")));
    }
}
