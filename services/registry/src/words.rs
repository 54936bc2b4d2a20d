//! What a caller says about an adapter, checked before anything is read.

use tailor_domain::Invalid;

use crate::publish::NewVersion;

const MAX_WORDS_BYTES: usize = 16 << 10;
const MAX_METRICS: usize = 100;
const MAX_TAGS: usize = 32;
const MAX_TAG_BYTES: usize = 64;
const MAX_LICENSE_BYTES: usize = 256;

/// # Errors
/// A template without `{input}`, a metric that is no number, notes, tags or names that are too long or not plain.
pub fn check_words(new: &NewVersion) -> Result<(), Invalid> {
    if !new.prompt_template.contains("{input}") {
        let problem = format!("{:?} has no {{input}}, so every prompt would be the same", new.prompt_template);
        return Err(Invalid::new("prompt_template", problem));
    }
    for (field, words, limit) in [
        ("prompt_template", &new.prompt_template, MAX_WORDS_BYTES),
        ("notes", &new.notes, MAX_WORDS_BYTES),
        ("code_commit", &new.code_commit, MAX_LICENSE_BYTES),
        ("license", &new.license, MAX_LICENSE_BYTES),
        ("who", &new.who, MAX_LICENSE_BYTES),
    ] {
        if words.len() > limit {
            return Err(Invalid::new(field, format!("{} bytes; the limit is {limit}", words.len())));
        }
    }
    if new.metrics.len() > MAX_METRICS {
        return Err(Invalid::new("metrics", format!("{} metrics; the limit is {MAX_METRICS}", new.metrics.len())));
    }
    if new.tags.len() > MAX_TAGS {
        return Err(Invalid::new("tags", format!("{} tags; the limit is {MAX_TAGS}", new.tags.len())));
    }
    new.tags.iter().try_for_each(|tag| check_tag(tag))?;
    match new.metrics.iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(Invalid::new(format!("metrics.{name}"), format!("{value} is no finite number"))),
        None => Ok(()),
    }
}

fn check_tag(tag: &str) -> Result<(), Invalid> {
    let plain = tag.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
    if plain && !tag.is_empty() && tag.len() <= MAX_TAG_BYTES {
        return Ok(());
    }
    let shown: String = tag.chars().take(MAX_TAG_BYTES).collect();
    let problem = format!("{shown:?} is no tag; give 1 to {MAX_TAG_BYTES} of a-z, 0-9, '-', '_' or '.'");
    Err(Invalid::new("tags", problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_one_plain_word() {
        for bad in ["", "Two", "two words", "a=b", "ä", &"x".repeat(65)] {
            assert!(check_tag(bad).is_err(), "{bad:?} must be refused");
        }
        for good in ["v2", "team-a", "eval.2026_01", &"x".repeat(64)] {
            assert!(check_tag(good).is_ok(), "{good:?} must be accepted");
        }
    }
}
