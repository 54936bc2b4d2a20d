use std::collections::{HashMap, HashSet};

use super::*;

#[test]
fn the_same_seed_gives_the_same_pairs() {
    let (mut one, mut other, mut third) = (Generator::new(7), Generator::new(7), Generator::new(8));
    let mut differed = false;
    for _ in 0..200 {
        let pair = one.pair();
        assert_eq!(pair, other.pair());
        differed |= pair != third.pair();
    }
    assert!(differed);
}

#[test]
fn a_faulty_sentence_has_one_correction() {
    let mut generator = Generator::new(3);
    let mut corrections: HashMap<String, String> = HashMap::new();
    for pair in std::iter::repeat_with(|| generator.pair()).take(60_000) {
        let correction = corrections.entry(pair.text.clone()).or_insert_with(|| pair.expected.clone());
        assert_eq!(*correction, pair.expected, "{:?} could mean both", pair.text);
    }
}

#[test]
fn a_faulty_sentence_is_no_sentence_of_the_grammar() {
    let mut sentences = Generator::new(5);
    let correct: HashSet<String> = std::iter::repeat_with(|| sentences.sentence().text).take(100_000).collect();
    let mut pairs = Generator::new(6);
    for pair in std::iter::repeat_with(|| pairs.pair()).take(60_000) {
        let faulty = !pair.faults.is_empty();
        assert!(
            !(faulty && correct.contains(&pair.text)),
            "{:?} is offered as a fault of {:?}",
            pair.text,
            pair.expected
        );
    }
}

#[test]
fn a_fault_changes_the_sentence_and_its_absence_does_not() {
    let mut generator = Generator::new(9);
    for pair in std::iter::repeat_with(|| generator.pair()).take(20_000) {
        assert_eq!(pair.faults.is_empty(), pair.text == pair.expected, "{pair:?}");
    }
}

#[test]
fn sentences_are_varied() {
    let mut generator = Generator::new(11);
    let sentences: Vec<String> = std::iter::repeat_with(|| generator.sentence().text).take(20_000).collect();
    let distinct: HashSet<&str> = sentences.iter().map(String::as_str).collect();
    let words: HashSet<&str> =
        sentences.iter().flat_map(|text| text.split(|letter: char| !letter.is_alphabetic())).collect();
    assert!(distinct.len() > 19_000, "{} distinct sentences of 20000", distinct.len());
    assert!(words.len() > 700, "{} distinct words", words.len());
}

#[test]
fn each_language_keeps_its_spelling() {
    let mut generator = Generator::new(13);
    for sentence in std::iter::repeat_with(|| generator.sentence()).take(20_000) {
        let british = ["colourful", "favourite", "neighbour", "theatre", "lorry"];
        let american = ["colorful", "favorite", "neighbor", "theater", "truck"];
        let foreign = if sentence.dialect == Dialect::Us { british } else { american };
        assert!(!foreign.iter().any(|word| sentence.text.contains(word)), "{sentence:?}");
    }
}
