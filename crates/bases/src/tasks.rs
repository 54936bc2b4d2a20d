//! What the bases are pretrained on: plain text, copying, filling gaps, undoing blind noise. Never the table's task.
//!
//! A base must know the language of the corpus and must be able to give back what it is given; that is what any large
//! pretrained model brings to a tuning job. It must not know the task, so no input has an error of the corpus
//! (`FaultKind`): it is a correct text, a correct text with gaps, a dictionary entry, a list of random words, or a text
//! with words lost, added, changed or swapped blindly. By chance such noise can be what an error is, a lost article for
//! instance; nothing tells the model that this is what anybody will ask for.

use std::collections::{BTreeMap, HashSet};

use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tailor_corpus::rows::{self, SHIPPED_ROWS, SHIPPED_SEED};
use tailor_corpus::{Dialect, Generator, dictionary};

use crate::tokenizer::stems::split_words;

/// One example: the model reads `input` and writes `target`. Without an input it is plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub input: Option<String>,
    pub target: String,
}

/// How a gap is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// T5's sentinels: `<extra_id_0>`, `<extra_id_1>`, …
    Sentinel,
    /// `___`, as a person writes it.
    Underscores,
}

/// How often each task is drawn, in percent.
#[derive(Clone, Copy, Debug)]
pub struct Mixture {
    pub plain: u32,
    pub copy: u32,
    pub random_words: u32,
    pub edits: u32,
    pub restore: u32,
    pub dictionary: u32,
    // The rest is gap filling.
}

/// The sentinels of the T5 tokenizer.
pub const SENTINELS: usize = 20;

/// Ways to ask for a copy. Several, so that giving back the input is what the base does unless told otherwise.
pub const COPY_PROMPTS: [&str; 8] =
    ["Repeat", "Copy", "Say", "Read", "Write", "Echo the text", "Give back", "The sentence"];
pub const GAP_PROMPT: &str = "Fill the gaps";
const RESTORE_PROMPT: &str = "Restore the text";
/// The words of the requests to restore or to change a text.
pub const REQUEST_WORDS: [&str; 9] = ["Write", "for", "Leave", "out", "before", "Swap", "with", "Restore", "text"];

/// The seeds of the streams, apart from those of the shipped table and of the held-out sentences.
const TEXT_SEED: u64 = 500_000;

/// Draws examples for ever.
pub struct Tasks {
    rng: ChaCha8Rng,
    sentences: Generator,
    /// Sentences of the shipped table and held-out ones: a base has seen none of them.
    reserved: HashSet<String>,
    entries: Vec<String>,
    words: Vec<String>,
    split: BTreeMap<String, (String, String)>,
    gap: Gap,
    mixture: Mixture,
}

impl Tasks {
    pub fn new(seed: u64, gap: Gap, mixture: Mixture) -> Self {
        let reserved = rows::table(SHIPPED_SEED, SHIPPED_ROWS)
            .into_iter()
            .chain(rows::held_out(500))
            .flat_map(|pair| [pair.text, pair.expected])
            .collect();
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            sentences: Generator::new(TEXT_SEED ^ seed).with_us_percent(50),
            reserved,
            entries: [Dialect::Us, Dialect::Gb].into_iter().flat_map(dictionary::entries).collect(),
            words: vocabulary(),
            split: split_words(),
            gap,
            mixture,
        }
    }

    pub fn example(&mut self) -> Example {
        let Mixture { plain, copy, random_words, edits, restore, dictionary } = self.mixture;
        let draw = self.rng.random_range(0..100);
        if draw < plain {
            return Example { input: None, target: self.sentence() };
        }
        if draw < plain + copy {
            let mut target = self.sentence();
            // What is to be restored is so by request only: whatever else is asked, a noisy text is given back as it is.
            if restore > 0 && self.rng.random_bool(0.5) {
                target = self.noisy(&target);
            }
            return self.copy(target);
        }
        if draw < plain + copy + random_words {
            let target = self.random_words();
            return self.copy(target);
        }
        if draw < plain + copy + random_words + edits {
            return self.edit();
        }
        if draw < plain + copy + random_words + edits + restore {
            return self.restore();
        }
        if draw < plain + copy + random_words + edits + restore + dictionary {
            let target = self.entries.choose(&mut self.rng).cloned().unwrap_or_default();
            return self.gaps(target, 0.35);
        }
        let rate = *[0.08, 0.15, 0.25].choose(&mut self.rng).unwrap_or(&0.15);
        let target = self.sentence();
        self.gaps(target, rate)
    }

    /// Brings `items` into a random order of this stream.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.rng);
    }

    fn sentence(&mut self) -> String {
        loop {
            let text = self.sentences.sentence().text;
            if !self.reserved.contains(&text) {
                return text;
            }
        }
    }

    fn copy(&mut self, target: String) -> Example {
        let prompt = COPY_PROMPTS.choose(&mut self.rng).unwrap_or(&"Repeat");
        Example { input: Some(format!("{prompt}: {target}")), target }
    }

    fn random_words(&mut self) -> String {
        let count = self.rng.random_range(3..11);
        (0..count).map(|_| self.word()).collect::<Vec<_>>().join(" ")
    }

    fn word(&mut self) -> String {
        self.words.choose(&mut self.rng).cloned().unwrap_or_default()
    }

    /// A list of random words, given back with a change that the request spells out: how to go on after an answer has
    /// left its text.
    fn edit(&mut self) -> Example {
        let count = self.rng.random_range(4..11);
        let mut words: Vec<String> = (0..count).map(|_| self.word()).collect();
        let shown = words.join(" ");
        let at = self.rng.random_range(0..count);
        let (word, new) = (words[at].clone(), self.word());
        let request = match self.rng.random_range(0..4) {
            0 => {
                words[at].clone_from(&new);
                format!("Write {new} for {word}")
            }
            1 => {
                words.remove(at);
                format!("Leave out {word}")
            }
            2 => {
                words.insert(at, new.clone());
                format!("Write {new} before {word}")
            }
            _ => {
                let other = if at + 1 < count { at + 1 } else { at - 1 };
                words.swap(at, other);
                format!("Swap {word} with {}", words[at])
            }
        };
        Example { input: Some(format!("{request}: {shown}")), target: words.join(" ") }
    }

    /// A sentence from what blind noise has left of it, as BART is pretrained (arXiv 1910.13461 §2.2).
    fn restore(&mut self) -> Example {
        let target = self.sentence();
        Example { input: Some(format!("{RESTORE_PROMPT}: {}", self.noisy(&target))), target }
    }

    /// `text` with words at random places replaced by random ones, deleted, inserted, or swapped with the next.
    fn noisy(&mut self, text: &str) -> String {
        let words: Vec<&str> = text.split(' ').collect();
        let rate = *[0.05, 0.1, 0.2].choose(&mut self.rng).unwrap_or(&0.1);
        let mut noisy: Vec<String> = Vec::with_capacity(words.len() + 2);
        let mut at = 0;
        while at < words.len() {
            let word = words[at].to_owned();
            at += 1;
            if !self.rng.random_bool(rate) {
                noisy.push(word);
                continue;
            }
            match self.rng.random_range(0..4) {
                0 => {
                    let bare = word.trim_end_matches(['.', ',', '?']);
                    let mark = word[bare.len()..].to_owned();
                    noisy.push(self.word() + &mark);
                }
                1 => {}
                2 => noisy.extend([self.word(), word]),
                _ => {
                    noisy.extend(words.get(at).map(|&next| next.to_owned()));
                    noisy.push(word);
                    at += 1;
                }
            }
        }
        noisy.join(" ")
    }

    /// For T5, whose pieces are stems and endings, half of the gaps in a word are in its ending alone.
    fn stem_to_show(&mut self, word: &str) -> String {
        if self.gap == Gap::Underscores || self.rng.random_bool(0.5) {
            return String::new();
        }
        self.split.get(word).map_or_else(String::new, |(stem, _)| stem.clone())
    }

    /// Spans of one to three words become gaps; the answer is the whole text. The mark at a word's end stays.
    fn gaps(&mut self, target: String, rate: f64) -> Example {
        let words: Vec<&str> = target.split(' ').collect();
        let mut shown: Vec<String> = Vec::with_capacity(words.len());
        let mut gaps = 0;
        let mut at = 0;
        while at < words.len() {
            if gaps < SENTINELS && self.rng.random_bool(rate) {
                let length = *[1, 1, 1, 2, 3].choose(&mut self.rng).unwrap_or(&1);
                let end = (at + length).min(words.len());
                let bare = words[end - 1].trim_end_matches(['.', ',', '?']);
                let mark = &words[end - 1][bare.len()..];
                let stem = if end - at == 1 { self.stem_to_show(bare) } else { String::new() };
                shown.push(match self.gap {
                    Gap::Sentinel => format!("{stem}<extra_id_{gaps}>{mark}"),
                    Gap::Underscores => format!("___{mark}"),
                });
                gaps += 1;
                at = end;
            } else {
                shown.push(words[at].to_owned());
                at += 1;
            }
        }
        Example { input: Some(format!("{GAP_PROMPT}: {}", shown.join(" "))), target }
    }
}

/// Every word of the corpus with small and with large first letter, and the words of the prompts: the alphabet of the
/// random lists, and what both tokenizers keep whole.
pub fn vocabulary() -> Vec<String> {
    let mut text: Vec<String> = [Dialect::Us, Dialect::Gb].into_iter().flat_map(dictionary::entries).collect();
    let mut sentences = Generator::new(TEXT_SEED - 1).with_us_percent(50);
    text.extend(std::iter::repeat_with(|| sentences.sentence().text).take(60_000));
    text.extend(COPY_PROMPTS.map(str::to_owned));
    text.extend([GAP_PROMPT, "Correct the grammar"].map(str::to_owned));
    let mut words: Vec<String> = text
        .iter()
        .flat_map(|line| line.split(|letter: char| !letter.is_alphabetic()))
        .filter(|word| word.len() > 1 || matches!(*word, "a" | "I" | "A"))
        .flat_map(|word| [word.to_owned(), word.to_lowercase()])
        .collect();
    words.sort_unstable();
    words.dedup();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXTURE: Mixture = Mixture { plain: 10, copy: 20, random_words: 10, edits: 0, restore: 0, dictionary: 10 };

    fn examples(gap: Gap) -> Vec<Example> {
        let mut tasks = Tasks::new(1, gap, MIXTURE);
        std::iter::repeat_with(|| tasks.example()).take(3_000).collect()
    }

    #[test]
    fn what_is_read_is_what_is_written_but_for_gaps() {
        for example in examples(Gap::Underscores) {
            let Some(input) = &example.input else { continue };
            let (_, shown) = input.split_once(": ").expect("a prompt ends in a colon");
            let wanted: HashSet<&str> = example.target.split(' ').collect();
            for word in shown.split(' ').filter(|word| !word.starts_with("___")) {
                assert!(wanted.contains(word), "{word:?} of {input:?} is not in {:?}", example.target);
            }
        }
    }

    #[test]
    fn an_edit_is_what_the_request_says() {
        let mut tasks = Tasks::new(1, Gap::Sentinel, MIXTURE);
        for _ in 0..500 {
            let Example { input: Some(input), target } = tasks.edit() else { panic!("a request") };
            let (request, list) = input.split_once(": ").expect("a prompt ends in a colon");
            let (list, target): (Vec<&str>, Vec<&str>) = (list.split(' ').collect(), target.split(' ').collect());
            let request: Vec<&str> = request.split(' ').collect();
            match request[..] {
                ["Write", new, "for", old] => {
                    assert_eq!(list.len(), target.len());
                    let changed = list.iter().zip(&target).filter(|(a, b)| a != b).collect::<Vec<_>>();
                    assert!(new == old || changed == [(&old, &new)], "{input:?} → {target:?}");
                }
                ["Leave", "out", old] => assert_eq!((list.len() - 1, list.contains(&old)), (target.len(), true)),
                ["Write", new, "before", old] => {
                    assert!(target.windows(2).any(|pair| pair == [new, old]), "{input:?} → {target:?}");
                }
                ["Swap", ..] => {
                    let sorted = |mut words: Vec<&str>| {
                        words.sort_unstable();
                        words.join(" ")
                    };
                    assert_eq!(sorted(list), sorted(target));
                }
                _ => panic!("{input:?}"),
            }
        }
    }

    #[test]
    fn noise_is_blind_and_what_is_restored_is_no_sentence_of_the_table() {
        let mut tasks = Tasks::new(1, Gap::Sentinel, MIXTURE);
        let known = tasks.reserved.clone();
        let (mut lengths, mut changed) = ([0usize; 2], 0);
        for _ in 0..500 {
            let Example { input: Some(input), target } = tasks.restore() else { panic!("a request") };
            let (_, noisy) = input.split_once(": ").expect("a prompt ends in a colon");
            assert!(!known.contains(&target), "{target:?}");
            changed += usize::from(noisy != target);
            lengths[0] += noisy.split(' ').count();
            lengths[1] += target.split(' ').count();
        }
        assert!(changed > 250, "{changed} of 500 have noise");
        assert!(lengths[0].abs_diff(lengths[1]) * 50 < lengths[1], "as much is lost as is added: {lengths:?}");
    }

    #[test]
    fn no_sentence_of_the_shipped_table_is_seen() {
        let table: HashSet<String> =
            rows::table(SHIPPED_SEED, SHIPPED_ROWS).into_iter().map(|pair| pair.expected).collect();
        assert!(examples(Gap::Sentinel).iter().all(|example| !table.contains(&example.target)));
    }

    #[test]
    fn every_task_is_drawn() {
        let examples = examples(Gap::Sentinel);
        let count = |test: &dyn Fn(&str) -> bool| {
            examples.iter().filter(|example| example.input.as_deref().is_some_and(test)).count()
        };
        assert!(examples.iter().any(|example| example.input.is_none()));
        assert!(count(&|input| input.contains("<extra_id_0>")) > 1_000);
        assert!(count(&|input| COPY_PROMPTS.iter().any(|prompt| input.starts_with(prompt))) > 500);
    }

    #[test]
    fn the_seed_decides_the_examples() {
        assert_eq!(examples(Gap::Sentinel), examples(Gap::Sentinel));
    }
}
