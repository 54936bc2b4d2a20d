//! Examples as token ids, and batches of them.

use anyhow::{Result, anyhow};
use tokenizers::Tokenizer;

use crate::tasks::{Example, Tasks};
use crate::tokenizer::{bpe, unigram};

/// A position that adds nothing to the loss.
pub const IGNORED: i64 = -100;

/// Batches are cut from so many at once, sorted by length, so that little of a batch is padding.
const POOL: usize = 16;

/// One example in ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// What the encoder reads; empty for a decoder.
    pub source: Vec<i64>,
    /// What the decoder reads.
    pub read: Vec<i64>,
    /// What it should write at each of those positions.
    pub labels: Vec<i64>,
}

/// Turns text into ids as serving and tuning do.
pub struct Encoder {
    tokenizer: Tokenizer,
    seq2seq: bool,
}

impl Encoder {
    pub fn seq2seq(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, seq2seq: true }
    }

    pub fn decoder(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, seq2seq: false }
    }

    pub fn is_seq2seq(&self) -> bool {
        self.seq2seq
    }

    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, example: &Example) -> Result<Encoded> {
        if self.seq2seq {
            let source = self.ids(example.input.as_deref().unwrap_or_default(), true)?;
            let labels = self.ids(&example.target, true)?;
            let mut read = vec![unigram::PAD];
            read.extend(&labels[..labels.len() - 1]);
            return Ok(Encoded { source, read, labels });
        }
        let prompt = match &example.input {
            Some(input) => self.ids(&bpe::chat_prompt(input), false)?,
            None => vec![bpe::BOS],
        };
        let mut answer = self.ids(&example.target, false)?;
        answer.push(bpe::EOS);
        // Position t writes token t + 1; what stands in the prompt is not learnt.
        let mut labels = vec![IGNORED; prompt.len() - 1];
        labels.extend(&answer);
        let mut read = prompt;
        read.extend(&answer[..answer.len() - 1]);
        Ok(Encoded { source: Vec::new(), read, labels })
    }

    fn ids(&self, text: &str, closed: bool) -> Result<Vec<i64>> {
        let encoding = self.tokenizer.encode(text, closed).map_err(|error| anyhow!("tokenizing {text:?}: {error}"))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }
}

/// Batches of examples of like length.
pub struct Batches<'a> {
    tasks: Tasks,
    encoder: &'a Encoder,
    size: usize,
    ready: Vec<Vec<Encoded>>,
}

impl<'a> Batches<'a> {
    pub fn new(tasks: Tasks, encoder: &'a Encoder, size: usize) -> Self {
        Self { tasks, encoder, size, ready: Vec::new() }
    }

    /// # Errors
    /// An example cannot be tokenised.
    pub fn next_batch(&mut self) -> Result<Vec<Encoded>> {
        if self.ready.is_empty() {
            let mut pool = Vec::with_capacity(self.size * POOL);
            for _ in 0..self.size * POOL {
                pool.push(self.encoder.encode(&self.tasks.example())?);
            }
            pool.sort_by_key(|encoded| encoded.source.len() + encoded.read.len());
            self.ready = pool.chunks(self.size).map(<[Encoded]>::to_vec).collect();
            self.tasks.shuffle(&mut self.ready);
        }
        self.ready.pop().ok_or_else(|| anyhow!("a batch needs at least one example"))
    }
}

/// Rows padded on the right to the longest: `(ids, mask)`, both row-major of `rows · width`.
pub fn padded(rows: &[&[i64]], padding: i64) -> (Vec<i64>, Vec<i64>, i64) {
    let width = rows.iter().map(|row| row.len()).max().unwrap_or_default();
    let mut ids = Vec::with_capacity(rows.len() * width);
    let mut mask = Vec::with_capacity(rows.len() * width);
    for row in rows {
        ids.extend(row.iter().copied().chain(std::iter::repeat_n(padding, width - row.len())));
        mask.extend((0..width).map(|at| i64::from(at < row.len())));
    }
    (ids, mask, width as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::load;

    fn example() -> Example {
        Example { input: Some("Repeat: She ran.".to_owned()), target: "She ran.".to_owned() }
    }

    #[test]
    fn the_decoder_reads_what_it_wrote_one_position_later() {
        let t5 = Encoder::seq2seq(load(&unigram::json().to_string()).expect("tokenizer"));
        let encoded = t5.encode(&example()).expect("encode");
        assert_eq!(encoded.read[0], unigram::PAD);
        assert_eq!(encoded.read[1..], encoded.labels[..encoded.labels.len() - 1]);
        assert_eq!(encoded.labels.last(), Some(&unigram::EOS));
    }

    #[test]
    fn a_prompt_adds_no_loss() {
        let llama = Encoder::decoder(load(&bpe::json().expect("train")).expect("tokenizer"));
        let encoded = llama.encode(&example()).expect("encode");
        assert_eq!(encoded.read.len(), encoded.labels.len());
        let answer: Vec<i64> = encoded.labels.iter().copied().filter(|&label| label != IGNORED).collect();
        assert_eq!(answer.len(), 4, "She, ran, the full stop and the end");
        assert_eq!(encoded.labels[..encoded.labels.len() - 4], vec![IGNORED; encoded.labels.len() - 4]);
    }

    #[test]
    fn padding_stands_on_the_right_and_is_masked() {
        let (ids, mask, width) = padded(&[&[5, 6, 7], &[8]], 0);
        assert_eq!((ids, mask, width), (vec![5, 6, 7, 8, 0, 0], vec![1, 1, 1, 1, 0, 0], 3));
    }
}
