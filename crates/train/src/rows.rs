//! Which rows can be trained on, which are put aside to measure on, and which share a sequence; settled once, before the
//! first step.

use std::io;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tailor_domain::spec::Grouping;
use tailor_domain::{EvaluateSpec, Family, Invalid, TrainSpec};
use tailor_models::Base;
use tailor_text::pack::{Bins, best_fit_decreasing};
use tailor_text::shard::ShardKind;
use tailor_text::{Column, Example};

use crate::error::Error;
use crate::examples::{Examples, Shard};
use crate::shuffle;

/// Keeps the numbers that choose the tuning rows apart from others under one seed.
const STREAM: u64 = u64::MAX - 1;
/// Rows of a pass between two times that the memory of what was looked up is given back.
pub const RELEASE_EVERY: usize = 1 << 14;

/// Rows that fit, as positions in what the caller gave. What takes a number for each lies where the rows lie.
#[derive(Debug)]
pub struct Rows<'a> {
    examples: Examples<'a>,
    /// What is learned from: each bin is one sequence, more than one row where they are packed.
    sequences: Bins,
    /// Tokens of each sequence.
    lengths: Column,
    /// What is measured on.
    tuning: Vec<u32>,
    left_out: usize,
}

impl<'a> Rows<'a> {
    /// Leaves out rows that are too long or teach nothing, puts some aside, and packs the rest where that is asked for.
    ///
    /// # Errors
    /// A row of another family or with an id outside the vocabulary; no row is left; packing for an encoder-decoder; a full
    /// disk.
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
        let folder = examples.folder();
        let kept = select(family, vocab, spec.max_tokens, &examples)?;
        let left_out = examples.len() - kept.len();
        let (tuning, rows) = split(kept, evaluate, spec.seed, &examples)?;
        let mut of_rows = Column::zeros(rows.len(), folder).map_err(on_disk)?;
        of_rows.fill(|at| {
            if at % RELEASE_EVERY == 0 {
                examples.release();
            }
            examples.tokens(rows.look(at) as usize) as u32
        });
        let (sequences, lengths) = match spec.grouping {
            Grouping::Length => (Bins::alone(rows, folder)?, of_rows),
            Grouping::Packed => {
                let (bins, lengths) =
                    best_fit_decreasing(&of_rows, spec.max_tokens as usize, folder).map_err(packing)?;
                (bins.named(&rows), lengths)
            }
        };
        let rows = Self { examples, sequences, lengths, tuning, left_out };
        rows.release();
        Ok(rows)
    }

    /// Tokens of each sequence that is learned from.
    pub fn lengths(&self) -> &Column {
        &self.lengths
    }

    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The caller's numbers of the rows in a sequence.
    pub fn sequence(&self, at: usize) -> &[u32] {
        self.sequences.rows(at)
    }

    /// The caller's numbers of the rows to measure on.
    pub fn tuning(&self) -> &[u32] {
        &self.tuning
    }

    pub fn examples(&self) -> &Examples<'a> {
        &self.examples
    }

    /// Gives back the memory of what was looked up.
    pub fn release(&self) {
        self.sequences.release();
        self.lengths.release();
        self.examples.release();
    }

    /// The caller's row numbers, for messages.
    pub fn name(&self, sequences: &[usize]) -> String {
        listed(&sequences.iter().flat_map(|at| self.sequence(*at)).copied().collect::<Vec<u32>>())
    }

    /// As [`Self::name`], of the rows to measure on.
    pub fn name_tuning(&self) -> String {
        listed(&self.tuning)
    }
}

fn listed(rows: &[u32]) -> String {
    const LISTED: usize = 8;
    let shown: Vec<String> = rows.iter().take(LISTED).map(ToString::to_string).collect();
    match rows.len().saturating_sub(LISTED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Why rows cannot be packed: a setting, or the disk.
fn packing(error: tailor_text::Error) -> Error {
    match error {
        tailor_text::Error::Packing { .. } => Invalid::new("train.max_tokens", error.to_string()).into(),
        other => other.into(),
    }
}

/// A failure of the disk that an order or a length was to lie on.
pub fn on_disk(error: io::Error) -> Error {
    tailor_text::Error::from(error).into()
}

/// The rows to measure on, and the rest; each in the caller's order.
fn split(
    mut rows: Column,
    evaluate: &EvaluateSpec,
    seed: u64,
    examples: &Examples<'_>,
) -> Result<(Vec<u32>, Column), Error> {
    let share = (rows.len() as f64 * evaluate.tuning_fraction) as usize; // a fraction below one row is none
    let count = share.min(evaluate.max_tuning_rows as usize);
    if count == 0 {
        return Ok((Vec::new(), rows));
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(STREAM);
    let mut drawn = Column::zeros(rows.len(), examples.folder()).map_err(on_disk)?;
    drawn.fill(|at| rows.look(at));
    let begin = rows.len() - count;
    drawn.swap_all(shuffle::swaps(&mut random, begin, rows.len()));
    let mut tuning: Vec<u32> = (begin..rows.len()).map(|at| drawn.look(at)).collect();
    tuning.sort_unstable();
    let mut left = 0;
    for at in 0..rows.len() {
        let row = rows.look(at);
        if tuning.binary_search(&row).is_err() {
            rows.put(left, row);
            left += 1;
        }
    }
    rows.truncate(left);
    rows.release();
    Ok((tuning, rows))
}

/// The rows that can be learnt from, in the caller's order.
fn select(family: Family, vocab: u64, max_tokens: u32, examples: &Examples<'_>) -> Result<Column, Error> {
    let mut rows = Column::zeros(examples.len(), examples.folder()).map_err(on_disk)?;
    let (mut kept, mut too_long, mut without_target) = (0, 0, 0);
    let mut judge = |row: usize, longest: usize, teaches: bool| {
        if longest > max_tokens as usize {
            too_long += 1;
        } else if !teaches {
            without_target += 1;
        } else {
            rows.put(kept, row as u32);
            kept += 1;
        }
    };
    match examples {
        Examples::Single(all) => {
            for (row, example) in all.iter().enumerate() {
                check(family, vocab, example).map_err(|problem| Error::Row { row, problem })?;
                judge(row, example.tokens(), example.targets() > 0);
            }
        }
        Examples::Pairs(pairs) => {
            for (row, pair) in pairs.iter().enumerate() {
                let both = [&pair.chosen, &pair.rejected];
                for example in both {
                    check(family, vocab, example).map_err(|problem| Error::Row { row, problem })?;
                }
                let longest = both.map(Example::tokens).into_iter().max().unwrap_or(0);
                judge(row, longest, both.into_iter().all(|example| example.targets() > 0));
            }
        }
        Examples::Shard(shard) => {
            check_shard(family, vocab, shard)?;
            // A shard's reader let no row pass that teaches nothing.
            shard.file().each(|row, _, longest, targets| judge(row, longest, targets > 0));
        }
    }
    if kept == 0 {
        return Err(Error::NoRows { rows: examples.len(), too_long, without_target, max_tokens });
    }
    rows.truncate(kept);
    rows.release();
    Ok(rows)
}

fn check_shard(family: Family, vocab: u64, shard: &Shard) -> Result<(), Error> {
    let shape = match shard.file().kind() {
        ShardKind::EncoderDecoder | ShardKind::EncoderDecoderPreferences => Family::EncoderDecoder,
        ShardKind::Decoder | ShardKind::DecoderPreferences | ShardKind::Prompts => Family::Decoder,
    };
    if shape != family {
        return Err(Error::Row { row: 0, problem: made_for(shape, family) });
    }
    match shard.file().largest_id() {
        Some((id, row)) if u64::from(id) >= vocab => Err(Error::Row { row, problem: outside(id, vocab) }),
        Some(_) | None => Ok(()),
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
        return Err(made_for(shape, family));
    }
    match streams.into_iter().flatten().find(|id| u64::from(**id) >= vocab) {
        Some(id) => Err(outside(*id, vocab)),
        None => Ok(()),
    }
}

fn made_for(shape: Family, family: Family) -> String {
    format!("made for {} base, this one is {}", article(shape), article(family))
}

fn outside(id: u32, vocab: u64) -> String {
    format!("token {id} is outside the base's vocabulary of {vocab}")
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

    fn select(family: Family, examples: &[Example]) -> Result<Vec<u32>, Error> {
        super::select(family, 10, 8, &Examples::Single(examples)).map(|kept| kept.to_vec())
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
        let column = |count: usize| Column::counting(count, None).expect("in memory");
        let split = |rows: usize, seed: u64| {
            let (tuning, rest) = split(column(rows), &evaluate, seed, &Examples::Single(&[])).expect("in memory");
            (tuning, rest.to_vec())
        };
        let rows: Vec<u32> = (0..100).collect();
        let (tuning, rest) = split(100, 3);
        assert_eq!((tuning.len(), rest.len()), (15, 85), "the bound of rows counts");
        let mut all = [tuning.clone(), rest].concat();
        all.sort_unstable();
        assert_eq!(all, rows);
        assert_eq!(split(100, 3).0, tuning);
        assert_ne!(split(100, 4).0, tuning);
        assert!(split(1, 3).0.is_empty(), "the only row is for learning");
    }
}
