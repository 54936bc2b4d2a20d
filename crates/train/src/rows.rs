//! Which rows can be trained on, checked once before the first step.

use tailor_domain::{Family, TrainSpec};
use tailor_models::Base;
use tailor_text::Example;

use crate::error::Error;

/// Rows that fit, as positions in what the caller gave.
#[derive(Debug)]
pub struct Rows<'a> {
    examples: &'a [Example],
    kept: Vec<usize>,
    /// Tokens of each kept row.
    lengths: Vec<usize>,
}

impl<'a> Rows<'a> {
    /// Leaves out rows that are too long or teach nothing.
    ///
    /// # Errors
    /// A row of another family or with an id outside the vocabulary; no row is left.
    pub fn usable(base: &Base, spec: &TrainSpec, examples: &'a [Example]) -> Result<Self, Error> {
        Self::select(base.family(), base.config().vocab_size() as u64, spec.max_tokens, examples)
    }

    fn select(family: Family, vocab: u64, max_tokens: u32, examples: &'a [Example]) -> Result<Self, Error> {
        let (mut kept, mut lengths) = (Vec::new(), Vec::new());
        let (mut too_long, mut without_target) = (0, 0);
        for (row, example) in examples.iter().enumerate() {
            check(family, vocab, example).map_err(|problem| Error::Row { row, problem })?;
            if example.tokens() > max_tokens as usize {
                too_long += 1;
            } else if targets(example) == 0 {
                without_target += 1;
            } else {
                kept.push(row);
                lengths.push(example.tokens());
            }
        }
        if kept.is_empty() {
            return Err(Error::NoRows { rows: examples.len(), too_long, without_target, max_tokens });
        }
        Ok(Self { examples, kept, lengths })
    }

    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    pub fn left_out(&self) -> usize {
        self.examples.len() - self.kept.len()
    }

    pub fn example(&self, at: usize) -> &'a Example {
        &self.examples[self.kept[at]]
    }

    /// The caller's row numbers, for messages.
    pub fn name(&self, batch: &[usize]) -> String {
        const LISTED: usize = 8;
        let shown: Vec<String> = batch.iter().take(LISTED).map(|at| self.kept[*at].to_string()).collect();
        match batch.len().saturating_sub(LISTED) {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
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

    #[test]
    fn rows_that_are_too_long_or_teach_nothing_are_left_out() {
        let examples = [row(&[1, 2, 3], 1), row(&[1; 9], 1), row(&[1, 2], 0), row(&[1], 1), row(&[4, 5], 1)];
        let rows = Rows::select(Family::Decoder, 10, 8, &examples).expect("two rows are left");
        assert_eq!((rows.lengths(), rows.left_out()), ([3, 2].as_slice(), 3));
        assert_eq!(rows.example(1), &examples[4]);
        assert_eq!(rows.name(&[1, 0]), "4, 0", "as the caller counts");
    }

    #[test]
    fn no_row_at_all_is_an_error_with_the_reasons() {
        let examples = [row(&[1; 9], 1), row(&[1, 2], 0)];
        let error = Rows::select(Family::Decoder, 10, 8, &examples).expect_err("nothing left");
        assert!(matches!(error, Error::NoRows { rows: 2, too_long: 1, without_target: 1, max_tokens: 8 }), "{error}");
    }

    #[test]
    fn a_row_made_for_another_base_is_refused_by_number() {
        let foreign = [row(&[1, 2], 1), row(&[1, 10], 1)];
        let error = Rows::select(Family::Decoder, 10, 8, &foreign).expect_err("vocabulary");
        assert!(error.to_string().starts_with("row 1: token 10 is outside the base's vocabulary of 10"), "{error}");
        let error = Rows::select(Family::EncoderDecoder, 10, 8, &foreign).expect_err("family");
        assert!(error.to_string().contains("made for a decoder base, this one is an encoder-decoder"), "{error}");
    }
}
