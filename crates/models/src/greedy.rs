//! The likeliest token after each prompt, and the likeliest after that: step by step, or all at once.

use tch::Tensor;

use crate::decoding::Decoding;
use crate::lora::LoraSet;
use crate::pass::Pass;
use crate::{Base, Result};

/// When greedy decoding stops.
#[derive(Debug, Clone)]
pub struct Greedy {
    pub max_new: usize,
    /// Tokens that end an answer; they are not part of it.
    pub eos: Vec<u32>,
}

/// Prompts that are being answered, so that others can have their turn between two tokens.
pub struct Answering {
    answers: Vec<Vec<u32>>,
    /// The prompt of each row that goes on.
    open: Vec<usize>,
    greedy: Greedy,
    /// Logits of each row's next token, and the rows; None once no row goes on.
    going: Option<(Tensor, Decoding)>, // [B, V]
}

impl Base {
    /// Reads the prompts. The cache is made for prompt and answer at once.
    ///
    /// # Errors
    /// As [`Base::start`].
    pub fn begin_greedy(&self, prompts: &[Vec<u32>], greedy: &Greedy, adapter: Option<&LoraSet>) -> Result<Answering> {
        let going = match greedy.max_new {
            0 => None,
            new => Some(self.start_for(prompts, Some(new), &Pass::maybe(adapter))?),
        };
        let (answers, open) = (vec![Vec::new(); prompts.len()], (0..prompts.len()).collect());
        Ok(Answering { answers, open, greedy: greedy.clone(), going })
    }

    /// Continues each prompt with the likeliest token until an end token or the limit.
    ///
    /// # Errors
    /// As [`Base::start`].
    pub fn generate_greedy(
        &self,
        prompts: &[Vec<u32>],
        greedy: &Greedy,
        adapter: Option<&LoraSet>,
    ) -> Result<Vec<Vec<u32>>> {
        let mut answering = self.begin_greedy(prompts, greedy, adapter)?;
        while !answering.step(self, adapter)? {}
        Ok(answering.into_answers())
    }
}

impl Answering {
    /// One token more for each row that goes on; true once none does. `base` and `adapter` are those it began with. After an
    /// error no row goes on.
    ///
    /// # Errors
    /// libtorch fails, most likely for want of memory.
    pub fn step(&mut self, base: &Base, adapter: Option<&LoraSet>) -> Result<bool> {
        let Some((logits, mut decoding)) = self.going.take() else { return Ok(true) };
        let best = Vec::<i64>::try_from(logits.argmax(-1, false))?;
        let mut going = Vec::new(); // rows
        for (row, &token) in best.iter().enumerate() {
            let answer = &mut self.answers[self.open[row]];
            if self.greedy.eos.contains(&(token as u32)) {
                continue;
            }
            answer.push(token as u32);
            if answer.len() < self.greedy.max_new {
                going.push(row);
            }
        }
        if going.is_empty() {
            return Ok(true);
        }
        let tokens: Vec<u32> = going.iter().map(|&row| best[row] as u32).collect();
        if going.len() < best.len() {
            decoding.keep(&going)?;
            self.open = going.iter().map(|&row| self.open[row]).collect();
        }
        let logits = base.step(&tokens, &mut decoding, &Pass::maybe(adapter))?;
        self.going = Some((logits, decoding));
        Ok(false)
    }

    /// Bytes of the cache.
    pub fn bytes(&self) -> usize {
        self.going.as_ref().map_or(0, |(_, decoding)| decoding.bytes())
    }

    /// In the order of the prompts, without end tokens.
    pub fn into_answers(self) -> Vec<Vec<u32>> {
        self.answers
    }
}
