//! Virtual tokens (prompt tuning, arXiv 2104.08691 §2): learned embeddings that stand before those of an input.
//!
//! Room is made for them in ids and mask, so that positions, masks and caches count them like other tokens; the model puts
//! the embeddings there once its own are looked up and scaled, as PEFT does by `inputs_embeds`. In an encoder-decoder they
//! stand before the encoder's input.

use tch::{Kind, Tensor};

use crate::lora::LoraSet;
use crate::pass::{Adapters, Pass};
use crate::{Error, Result};

/// Where the virtual tokens of each row of a pass stand.
pub(crate) struct Prompts<'a> {
    /// Of each row that has any: the embeddings [P, D] and the position of the first.
    rows: Vec<Option<(&'a Tensor, i64)>>,
}

/// An input with room for its virtual tokens.
pub(crate) struct Roomy<'a> {
    pub ids: Tensor,          // [B, P + T]
    pub mask: Option<Tensor>, // [B, P + T]
    pub prompts: Option<Prompts<'a>>,
    /// P.
    pub room: i64,
}

impl<'a> Pass<'a> {
    /// The virtual tokens of each of `rows` rows, where any has some.
    pub(crate) fn prompts(&self, rows: usize) -> Option<Vec<Option<&'a Tensor>>> {
        let all: Vec<_> = match &self.adapters {
            Adapters::None => return None,
            Adapters::One(set) => vec![set.prompt(); rows],
            Adapters::Rows(routes) => (0..rows).map(|row| routes.set(row).and_then(LoraSet::prompt)).collect(),
        };
        all.iter().any(Option::is_some).then_some(all)
    }

    /// Whole sequences, each with room at its beginning.
    ///
    /// # Shapes
    /// `ids` and `mask` [B, T]; padding on the right, one text in a row
    ///
    /// # Errors
    /// Rows with different virtual tokens.
    pub(crate) fn with_room(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Roomy<'a>> {
        let rows = ids.size()[0];
        let Some(prompts) = self.prompts(rows as usize) else {
            let mask = mask.map(Tensor::shallow_clone);
            return Ok(Roomy { ids: ids.shallow_clone(), mask, prompts: None, room: 0 });
        };
        let Adapters::One(_) = self.adapters else {
            let problem = "rows with virtual tokens of their own cannot share a pass over whole sequences";
            return Err(Error::Request(problem.into()));
        };
        let room = prompts.iter().flatten().map(|prompt| prompt.size()[0]).max().unwrap_or(0);
        let filled = |value: i64, after: &Tensor| {
            let before = Tensor::full([rows, room], value, (Kind::Int64, ids.device()));
            Tensor::cat(&[before, after.to_kind(Kind::Int64)], 1)
        };
        Ok(Roomy {
            ids: filled(0, ids),
            mask: mask.map(|mask| filled(1, mask)),
            prompts: Some(Prompts::new(prompts, |_| 0)),
            room,
        })
    }
}

impl<'a> Prompts<'a> {
    pub fn new(prompts: Vec<Option<&'a Tensor>>, start: impl Fn(usize) -> i64) -> Self {
        let rows = prompts.into_iter().enumerate().map(|(row, prompt)| Some((prompt?, start(row))));
        Self { rows: rows.collect() }
    }

    /// `x` with the virtual tokens in their places.
    ///
    /// # Shapes
    /// `x` [B, T, D] → the same
    pub fn put_into(&self, x: &Tensor) -> Tensor {
        let (batch, tokens, width) = crate::attention::shape3(x);
        if let Some((prompt, room)) = self.same_for_all() {
            let prompt = prompt.to_kind(x.kind()).unsqueeze(0).expand([batch, room, width], false);
            return Tensor::cat(&[prompt, x.narrow(1, room, tokens - room)], 1);
        }
        let rows = self.rows.iter().enumerate().map(|(row, prompt)| {
            let x = x.get(row as i64); // [T, D]
            let Some((prompt, start)) = prompt else { return x };
            let end = start + prompt.size()[0];
            let (before, after) = (x.narrow(0, 0, *start), x.narrow(0, end, tokens - end));
            Tensor::cat(&[before, prompt.to_kind(x.kind()), after], 0)
        });
        Tensor::stack(&rows.collect::<Vec<_>>(), 0)
    }

    /// The virtual tokens and P, where every row begins with the same.
    fn same_for_all(&self) -> Option<(&'a Tensor, i64)> {
        let (first, _) = (*self.rows.first()?)?;
        let same =
            |row: &Option<(&Tensor, i64)>| row.is_some_and(|(prompt, at)| at == 0 && std::ptr::eq(prompt, first));
        self.rows.iter().all(same).then(|| (first, first.size()[0]))
    }
}
