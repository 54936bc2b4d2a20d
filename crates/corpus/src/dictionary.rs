//! The vocabulary as a dictionary prints it: one entry a line, each form after the headword.

use crate::words::{ADVERBS, Dialect, NOUNS, SHORT_ADJECTIVES, VERBS};

/// `walk, walks, walked, walked, walking`; `knife, knives`; `tall, taller, tallest`; `quick, quickly`.
pub fn entries(dialect: Dialect) -> Vec<String> {
    let verbs = VERBS.iter().map(|verb| {
        [
            verb.base(dialect),
            verb.third(dialect),
            verb.past(dialect),
            verb.participle(dialect),
            verb.progressive(dialect),
        ]
        .join(", ")
    });
    let nouns = NOUNS.iter().map(|noun| [noun.singular(dialect), noun.plural(dialect)].join(", "));
    let adjectives = SHORT_ADJECTIVES
        .iter()
        .map(|adjective| [adjective.plain, adjective.comparative, adjective.superlative].join(", "));
    let adverbs = ADVERBS.iter().map(|adverb| [adverb.adjective, adverb.adverb].join(", "));
    let pronouns = [
        "I, me, my",
        "he, him, his",
        "she, her, her",
        "we, us, our",
        "they, them, their",
        "be, is, are, was, were",
        "have, has",
        "do, does, did",
    ];
    verbs.chain(nouns).chain(adjectives).chain(adverbs).chain(pronouns.map(str::to_owned)).collect()
}
