//! The sequences that are being decoded together, whatever adapters they use. They come and go between steps.
//!
//! A step that fails is nobody's verdict: each of its sequences is brought back alone from its tokens, and only those that
//! fail alone are given up. A sequence never sees what else is in the batch.

use tailor_models::{Base, Decoding, LoraSet, Pass, Routes};
use tailor_torch::guarded;
use tch::Tensor;

use crate::error::Error;
use crate::sequence::Sequence;

/// Prompt positions, padding included, that are read in one pass.
const MAX_PROMPT_POSITIONS: usize = 1 << 13;

#[derive(Default)]
pub struct Batch {
    /// In the order of the decoding's rows.
    sequences: Vec<Sequence>,
    /// None exactly when there is no sequence.
    decoding: Option<Decoding>,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Reads the prompts of new sequences, says their first tokens, and takes them in.
    pub fn admit(&mut self, base: &Base, mut fresh: Vec<Sequence>) {
        // Prompts of like length together, so that little is padded.
        fresh.sort_by_key(|sequence| sequence.prompt.len());
        while !fresh.is_empty() {
            let rest = fresh.split_off(prompts_in_one_pass(&fresh));
            self.admit_together(base, std::mem::replace(&mut fresh, rest));
        }
    }

    fn admit_together(&mut self, base: &Base, fresh: Vec<Sequence>) {
        let prompts: Vec<Vec<u32>> = fresh.iter().map(|sequence| sequence.prompt.clone()).collect();
        match run(&fresh, base, |pass| base.start(&prompts, pass)) {
            Ok((logits, decoding)) => self.take_in(base, fresh, logits, decoding),
            Err(error) => match <[Sequence; 1]>::try_from(fresh) {
                Ok([alone]) => alone.fail(error),
                Err(several) => several.into_iter().for_each(|sequence| self.admit_together(base, vec![sequence])),
            },
        }
    }

    /// One token for every sequence.
    pub fn step(&mut self, base: &Base) {
        self.keep(|sequence| !sequence.is_abandoned());
        let Some(mut decoding) = self.decoding.take() else { return };
        let sequences = std::mem::take(&mut self.sequences);
        let tokens: Vec<u32> = sequences.iter().filter_map(|sequence| sequence.made.last().copied()).collect();
        match run(&sequences, base, |pass| base.step(&tokens, &mut decoding, pass)) {
            Ok(logits) => self.take_in(base, sequences, logits, decoding),
            Err(error) => {
                tracing::warn!(%error, sequences = sequences.len(), "a step failed; going on one by one");
                sequences.into_iter().for_each(|sequence| self.bring_back(base, sequence));
            }
        }
    }

    /// Fails every sequence, e.g. when the engine stops.
    pub fn abort(&mut self, error: &Error) {
        self.decoding = None;
        std::mem::take(&mut self.sequences).iter().for_each(|sequence| sequence.fail(error.clone()));
    }

    /// Runs a sequence alone from its first token to where it was, and one further.
    fn bring_back(&mut self, base: &Base, sequence: Sequence) {
        let alone = vec![sequence];
        let replayed = run(&alone, base, |pass| {
            let (mut logits, mut decoding) = base.start(&[alone[0].prompt.clone()], pass)?;
            for token in &alone[0].made {
                logits = base.step(&[*token], &mut decoding, pass)?;
            }
            Ok((logits, decoding))
        });
        match replayed {
            Ok((logits, decoding)) => self.take_in(base, alone, logits, decoding),
            Err(error) => alone.iter().for_each(|sequence| sequence.fail(error.clone())),
        }
    }

    /// Lets each sequence take its logits, and joins those that go on to the others.
    ///
    /// # Shapes
    /// `logits`: (B, V), a row for each sequence.
    fn take_in(&mut self, base: &Base, sequences: Vec<Sequence>, logits: Tensor, decoding: Decoding) {
        let rows = match guarded(|| Ok::<_, tailor_torch::Error>(Vec::<Vec<f32>>::try_from(&logits)?)) {
            Ok(rows) => rows,
            Err(error) => {
                let error = Error::device(&error);
                return sequences.iter().for_each(|sequence| sequence.fail(error.clone()));
            }
        };
        let eos = base.config().eos_token_ids();
        let (mut going, mut kept) = (Vec::new(), Vec::new());
        for (row, (mut sequence, logits)) in sequences.into_iter().zip(&rows).enumerate() {
            if sequence.advance(logits, eos) {
                kept.push(row);
                going.push(sequence);
            }
        }
        let mut newcomers = Batch { sequences: going, decoding: Some(decoding) };
        newcomers.narrow(&kept, rows.len());
        self.join(newcomers);
    }

    fn join(&mut self, other: Self) {
        let (Some(theirs), sequences) = (other.decoding, other.sequences) else { return };
        let joined = match self.decoding.take() {
            None => Ok(theirs),
            Some(ours) => guarded(|| Ok::<_, tailor_torch::Error>(ours.join(theirs))),
        };
        self.sequences.extend(sequences);
        match joined {
            Ok(decoding) => self.decoding = Some(decoding),
            // Memory, most likely: the caches of both are gone, so nobody can go on.
            Err(error) => self.abort(&Error::device(&error)),
        }
    }

    fn keep(&mut self, stays: impl Fn(&Sequence) -> bool) {
        let rows = self.sequences.len();
        let kept: Vec<usize> = (0..rows).filter(|row| stays(&self.sequences[*row])).collect();
        self.sequences.retain(stays);
        self.narrow(&kept, rows);
    }

    /// Keeps these of the decoding's `rows`.
    fn narrow(&mut self, kept: &[usize], rows: usize) {
        if kept.is_empty() {
            self.decoding = None;
            return;
        }
        let Some(decoding) = self.decoding.as_mut().filter(|_| kept.len() < rows) else { return };
        if let Err(error) = guarded(|| decoding.keep(kept)) {
            self.abort(&Error::model(&error));
        }
    }
}

/// One guarded pass with each sequence's own adapter.
fn run<T>(
    sequences: &[Sequence],
    base: &Base,
    work: impl FnOnce(&Pass<'_>) -> tailor_models::Result<T>,
) -> Result<T, Error> {
    guarded(|| {
        let sets: Vec<Option<&LoraSet>> = sequences.iter().map(Sequence::set).collect();
        let routes = Routes::new(&sets, base.device());
        work(&Pass::rows(&routes))
    })
    .map_err(|error| Error::model(&error))
}

/// How many of these prompts, sorted by length, fit one pass; at least one.
fn prompts_in_one_pass(fresh: &[Sequence]) -> usize {
    let fits = |(index, sequence): (usize, &Sequence)| sequence.prompt.len() * (index + 1) <= MAX_PROMPT_POSITIONS;
    let count = fresh.iter().enumerate().take_while(|entry| fits((entry.0, entry.1))).count();
    count.max(1)
}
