//! Which rows can be trained on, which are put aside to measure on, and which share a sequence; settled once, before the
//! first step.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tailor_domain::spec::Grouping;
use tailor_domain::{EvaluateSpec, Family, Invalid, TrainSpec};
use tailor_models::Base;
use tailor_text::Example;
use tailor_text::pack::best_fit_decreasing;

use crate::error::Error;
use crate::examples::Examples;

/// Keeps the numbers that choose the tuning rows apart from others under one seed.
const STREAM: u64 = u64::MAX - 1;

/// Rows that fit, as positions in what the caller gave.
#[derive(Debug)]
pub struct Rows<'a> {
    examples: Examples<'a>,
    /// What is learned from: each entry is one sequence, more than one row where they are packed.
    sequences: Vec<Vec<usize>>,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    /// What is measured on.
    tuning: Vec<usize>,
    left_out: usize,
}

impl<'a> Rows<'a> {
    /// Leaves out rows that are too long or teach nothing, puts some aside, and packs the rest where that is asked for.
    ///
    /// # Errors
    /// A row of another family or with an id outside the vocabulary; no row is left; packing for an encoder-decoder.
    pub fn usable(
        base: &Base,
        spec: &TrainSpec,
        evaluate: &EvaluateSpec,
        examples: Examples<'a>,
    ) -> Result<Self, Error> {
        let (family, vocab) = (base.family(), base.config().vocab_size() as u64);
        if spec.grouping == Grouping::Packed && family == Family::EncoderDecoder {
            let problem = "packed needs a decoder; an encoder-decoder takes length";
            return Err(Invalid::new("train.grouping", problem).into());
        }
        let kept = Kept::select(family, vocab, spec.max_tokens, examples)?;
        let left_out = examples.len() - kept.rows.len();
        let (tuning, rows) = split(kept.rows, evaluate, spec.seed);
        let length = |row: &usize| examples.tokens(*row);
        let sequences: Vec<Vec<usize>> = match spec.grouping {
            Grouping::Length => rows.iter().map(|row| vec![*row]).collect(),
            Grouping::Packed => {
                let lengths: Vec<usize> = rows.iter().map(length).collect();
                let bins = best_fit_decreasing(&lengths, spec.max_tokens as usize)
                    .map_err(|error| Invalid::new("train.max_tokens", error.to_string()))?;
                bins.into_iter().map(|bin| bin.into_iter().map(|at| rows[at]).collect()).collect()
            }
        };
        let total = |sequence: &Vec<usize>| sequence.iter().map(length).sum();
        let lengths = sequences.iter().map(total).collect();
        Ok(Self { examples, sequences, lengths, tuning, left_out })
    }

    /// Tokens of each sequence that is learned from.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The caller's numbers of the rows in a sequence.
    pub fn sequence(&self, at: usize) -> &[usize] {
        &self.sequences[at]
    }

    /// The caller's numbers of the rows to measure on.
    pub fn tuning(&self) -> &[usize] {
        &self.tuning
    }

    pub fn examples(&self) -> Examples<'a> {
        self.examples
    }

    /// The caller's row numbers, for messages.
    pub fn name(&self, sequences: &[usize]) -> String {
        const LISTED: usize = 8;
        let rows: Vec<usize> = sequences.iter().flat_map(|at| self.sequence(*at)).copied().collect();
        let shown: Vec<String> = rows.iter().take(LISTED).map(ToString::to_string).collect();
        match rows.len().saturating_sub(LISTED) {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }
}

/// The rows to measure on, and the rest; each in the caller's order.
fn split(mut rows: Vec<usize>, evaluate: &EvaluateSpec, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let share = (rows.len() as f64 * evaluate.tuning_fraction) as usize; // a fraction below one row is none
    let count = share.min(evaluate.max_tuning_rows as usize);
    if count == 0 {
        return (Vec::new(), rows);
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(STREAM);
    let (chosen, _) = rows.partial_shuffle(&mut random, count);
    let mut tuning = chosen.to_vec();
    tuning.sort_unstable();
    rows.retain(|row| tuning.binary_search(row).is_err());
    rows.sort_unstable();
    (tuning, rows)
}

struct Kept {
    rows: Vec<usize>,
}

impl Kept {
    fn select(family: Family, vocab: u64, max_tokens: u32, examples: Examples<'_>) -> Result<Self, Error> {
        let mut rows = Vec::new();
        let (mut too_long, mut without_target) = (0, 0);
        for row in 0..examples.len() {
            for example in examples.of(row) {
                check(family, vocab, example).map_err(|problem| Error::Row { row, problem })?;
            }
            if examples.of(row).any(|example| example.tokens() > max_tokens as usize) {
                too_long += 1;
            } else if examples.of(row).any(|example| targets(example) == 0) {
                without_target += 1;
            } else {
                rows.push(row);
            }
        }
        if rows.is_empty() {
            return Err(Error::NoRows { rows: examples.len(), too_long, without_target, max_tokens });
        }
        Ok(Self { rows })
    }
}

/// Tokens that count in the loss; a decoder's first token is predicted from nothing and never does.
pub fn targets(example: &Example) -> usize {
    match example {
        Example::Decoder { in_loss, .. } => in_loss.iter().skip(1).filter(|counts| **counts).count(),
        Example::EncoderDecoder { labels, .. } => labels.len(),
    }
}

fn check(family: Family, vocab: u64, example: &Example) -> Result<(), String> {
    let (shape, streams) = match example {
        Example::Decoder { ids, in_loss } if ids.len() != in_loss.len() => {
            return Err(format!("{} ids but {} marks of what counts in the loss", ids.len(), in_loss.len()));
        }
        Example::Decoder { ids, .. } => (Family::Decoder, [ids.as_slice(), &[]]),
        Example::EncoderDecoder { encoder, .. } if encoder.is_empty() => return Err("the input is empty".into()),
        Example::EncoderDecoder { encoder, labels } => (Family::EncoderDecoder, [encoder.as_slice(), labels]),
    };
    if shape != family {
        return Err(format!("made for {} base, this one is {}", article(shape), article(family)));
    }
    match streams.into_iter().flatten().find(|id| u64::from(**id) >= vocab) {
        Some(id) => Err(format!("token {id} is outside the base's vocabulary of {vocab}")),
        None => Ok(()),
    }
}

fn article(family: Family) -> &'static str {
    match family {
        Family::Decoder => "a decoder",
        Family::EncoderDecoder => "an encoder-decoder",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: &[u32], counted: usize) -> Example {
        let in_loss = (0..ids.len()).map(|at| at + counted >= ids.len()).collect();
        Example::Decoder { ids: ids.to_vec(), in_loss }
    }

    fn select(family: Family, examples: &[Example]) -> Result<Vec<usize>, Error> {
        Kept::select(family, 10, 8, Examples::Single(examples)).map(|kept| kept.rows)
    }

    #[test]
    fn rows_that_are_too_long_or_teach_nothing_are_left_out() {
        let examples = [row(&[1, 2, 3], 1), row(&[1; 9], 1), row(&[1, 2], 0), row(&[1], 1), row(&[4, 5], 1)];
        assert_eq!(select(Family::Decoder, &examples).expect("two rows are left"), [0, 4]);
    }

    #[test]
    fn no_row_at_all_is_an_error_with_the_reasons() {
        let examples = [row(&[1; 9], 1), row(&[1, 2], 0)];
        let error = select(Family::Decoder, &examples).expect_err("nothing left");
        assert!(matches!(error, Error::NoRows { rows: 2, too_long: 1, without_target: 1, max_tokens: 8 }), "{error}");
    }

    #[test]
    fn a_row_made_for_another_base_is_refused_by_number() {
        let foreign = [row(&[1, 2], 1), row(&[1, 10], 1)];
        let error = select(Family::Decoder, &foreign).expect_err("vocabulary");
        assert!(error.to_string().starts_with("row 1: token 10 is outside the base's vocabulary of 10"), "{error}");
        let error = select(Family::EncoderDecoder, &foreign).expect_err("family");
        assert!(error.to_string().contains("made for a decoder base, this one is an encoder-decoder"), "{error}");
    }

    #[test]
    fn tuning_rows_are_chosen_by_the_seed_and_never_learned_from() {
        let evaluate = EvaluateSpec { tuning_fraction: 0.2, max_tuning_rows: 15, ..EvaluateSpec::default() };
        let rows: Vec<usize> = (0..100).collect();
        let (tuning, rest) = split(rows.clone(), &evaluate, 3);
        assert_eq!((tuning.len(), rest.len()), (15, 85), "the bound of rows counts");
        let mut all = [tuning.clone(), rest].concat();
        all.sort_unstable();
        assert_eq!(all, rows);
        assert_eq!(split(rows.clone(), &evaluate, 3).0, tuning);
        assert_ne!(split(rows.clone(), &evaluate, 4).0, tuning);
        assert!(split(vec![7], &evaluate, 3).0.is_empty(), "the only row is for learning");
    }
}
