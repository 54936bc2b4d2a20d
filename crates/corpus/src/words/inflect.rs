//! Regular English inflection, and the article that a word takes.

/// `box` → `boxes`, `city` → `cities`, `dog` → `dogs`.
pub fn plural(noun: &str) -> String {
    add_s(noun)
}

/// `wash` → `washes`, `carry` → `carries`, `walk` → `walks`.
pub fn third_person(verb: &str) -> String {
    add_s(verb)
}

/// `love` → `loved`, `carry` → `carried`, `walk` → `walked`. Doubled consonants are spelt out in the verb table.
pub fn past(verb: &str) -> String {
    if verb.ends_with('e') {
        format!("{verb}d")
    } else if let Some(stem) = consonant_y(verb) {
        format!("{stem}ied")
    } else {
        format!("{verb}ed")
    }
}

/// `love` → `loving`, `see` → `seeing`, `walk` → `walking`.
pub fn progressive(verb: &str) -> String {
    match verb.strip_suffix('e') {
        Some(stem) if !verb.ends_with("ee") => format!("{stem}ing"),
        _ => format!("{verb}ing"),
    }
}

/// The indefinite article before `word`, by sound and not by letter.
pub fn indefinite(word: &str) -> &'static str {
    const SILENT_H: [&str; 2] = ["honest", "hour"];
    const CONSONANT_U: [&str; 3] = ["useful", "uniform", "university"];
    if SILENT_H.contains(&word) {
        return "an";
    }
    if CONSONANT_U.contains(&word) {
        return "a";
    }
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn add_s(word: &str) -> String {
    if let Some(stem) = consonant_y(word) {
        format!("{stem}ies")
    } else if ["s", "x", "z", "ch", "sh", "o"].iter().any(|end| word.ends_with(end)) {
        format!("{word}es")
    } else {
        format!("{word}s")
    }
}

fn consonant_y(word: &str) -> Option<&str> {
    word.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'i', 'o', 'u']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_rules_follow_the_spelling() {
        assert_eq!(plural("city"), "cities");
        assert_eq!(plural("boy"), "boys");
        assert_eq!(plural("watch"), "watches");
        assert_eq!(past("carry"), "carried");
        assert_eq!(past("enjoy"), "enjoyed");
        assert_eq!(progressive("bake"), "baking");
        assert_eq!(progressive("see"), "seeing");
    }

    #[test]
    fn the_article_follows_the_sound() {
        assert_eq!(indefinite("hour"), "an");
        assert_eq!(indefinite("university"), "a");
        assert_eq!(indefinite("umbrella"), "an");
        assert_eq!(indefinite("house"), "a");
    }
}
