//! Token by token: prompts in, next-token logits out, rows that leave and join between steps.

use tch::{Kind, Tensor, no_grad};

use crate::base::Model;
use crate::cache::Cache;
use crate::pass::Pass;
use crate::prompt::Prompts;
use crate::{Base, Config, Error, Result};

/// A batch that is being continued. Rows are in the order of the prompts, then as [`Decoding::keep`] and
/// [`Decoding::join`] left them.
pub struct Decoding {
    cache: Cache,
}

impl Decoding {
    pub fn rows(&self) -> usize {
        self.cache.mask.size()[0] as usize
    }

    /// Cached tokens of the longest row, padding included.
    pub fn length(&self) -> usize {
        self.cache.mask.size()[1] as usize
    }

    pub fn bytes(&self) -> usize {
        let cross = self.cache.cross.as_ref().map_or(0, |cross| cross.bytes());
        self.cache.layers.iter().map(|layer| layer.bytes()).sum::<usize>() + cross
    }

    /// Keeps these rows in this order and drops padding that all of them share.
    ///
    /// # Errors
    /// A row that is not there, or none at all.
    pub fn keep(&mut self, rows: &[usize]) -> Result<()> {
        let have = self.rows();
        if rows.is_empty() || rows.iter().any(|&row| row >= have) {
            return Err(Error::Request(format!("rows {rows:?} cannot be kept of a batch of {have}")));
        }
        no_grad(|| {
            let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
            let index = Tensor::from_slice(&index).to_device(self.cache.mask.device());
            let mask = self.cache.mask.index_select(0, &index);
            let real = mask.sum_dim_intlist([0i64].as_slice(), false, Kind::Int64).gt(0).to_kind(Kind::Int64);
            let trim = if real.numel() == 0 { 0 } else { real.argmax(0, false).int64_value(&[]) };
            self.cache.mask = mask.narrow(1, trim, mask.size()[1] - trim);
            self.cache.layers.iter_mut().for_each(|layer| layer.keep(&index, trim));
            if let Some(cross) = &mut self.cache.cross {
                cross.keep(&index);
            }
        });
        Ok(())
    }

    /// The rows of `self`, then those of `other`, from the same base.
    pub fn join(self, other: Self) -> Self {
        no_grad(|| {
            let length = self.cache.mask.size()[1].max(other.cache.mask.size()[1]);
            let pad = |mask: &Tensor| mask.constant_pad_nd([length - mask.size()[1], 0].as_slice());
            let mask = Tensor::cat(&[pad(&self.cache.mask), pad(&other.cache.mask)], 0);
            let pairs = self.cache.layers.into_iter().zip(other.cache.layers);
            let layers = pairs.map(|(one, other)| one.join(other, length)).collect();
            let cross = match (self.cache.cross, other.cache.cross) {
                (Some(one), Some(other)) => Some(one.join(other)),
                (one, other) => one.or(other),
            };
            Self { cache: Cache { layers, mask, cross } }
        })
    }
}

impl Base {
    /// Reads the prompts. For a decoder a prompt is what comes before the answer; for an encoder-decoder it is the
    /// encoder's input, and the decoder gets its start token.
    ///
    /// # Shapes
    /// → logits [B, V] of each row's next token
    ///
    /// # Errors
    /// No prompt, an empty or too long one, a token the model does not have, routes for another number of rows.
    pub fn start(&self, prompts: &[Vec<u32>], pass: &Pass<'_>) -> Result<(Tensor, Decoding)> {
        self.start_for(prompts, None, pass)
    }

    /// As [`Base::start`] for answers of at most `new` tokens, for which the cache has room from the beginning.
    pub(crate) fn start_for(
        &self,
        prompts: &[Vec<u32>],
        new: Option<usize>,
        pass: &Pass<'_>,
    ) -> Result<(Tensor, Decoding)> {
        // Of the answer's tokens the last is never read.
        let room = |before: i64| new.map_or(0, |new| before + (new as i64 - 1).max(0));
        self.check_prompts(prompts, pass)?;
        check_rows(pass, prompts.len())?;
        let batch = prompts.len() as i64;
        no_grad(|| match &self.model {
            Model::Decoder(decoder) => {
                let (ids, mask, virtual_tokens) = self.pad(prompts, Side::Left, pass);
                let expected = room(ids.size()[1]);
                let mut cache = Cache::new(decoder.layer_count(), None, batch, expected, self.device());
                let hidden = decoder.hidden(&ids, Some(&mask), virtual_tokens.as_ref(), Some(&mut cache), pass);
                Ok((self.head(&last(&hidden), pass), Decoding { cache }))
            }
            Model::T5(t5) => {
                let (ids, mask, virtual_tokens) = self.pad(prompts, Side::Right, pass);
                let states = t5.encode(&ids, Some(&mask), virtual_tokens.as_ref(), pass);
                let cross = t5.cross(&states, Some(&mask), pass);
                let cache = Cache::new(t5.decoder_layers(), Some(cross), batch, room(1), self.device());
                let mut decoding = Decoding { cache };
                let Config::T5(config) = self.config() else { unreachable!("a T5 model has a T5 config") };
                let logits = self.step(&vec![config.decoder_start_token_id; prompts.len()], &mut decoding, pass)?;
                Ok((logits, decoding))
            }
        })
    }

    /// Appends one token to each row.
    ///
    /// # Shapes
    /// → logits [B, V] of each row's next token
    ///
    /// # Errors
    /// Another number of tokens or routes than rows, a token the model does not have.
    pub fn step(&self, tokens: &[u32], decoding: &mut Decoding, pass: &Pass<'_>) -> Result<Tensor> {
        if tokens.len() != decoding.rows() {
            return Err(Error::Request(format!("{} tokens for {} rows", tokens.len(), decoding.rows())));
        }
        check_rows(pass, tokens.len())?;
        self.check_tokens(tokens)?;
        no_grad(|| {
            let ids: Vec<i64> = tokens.iter().map(|&id| id as i64).collect();
            let ids = Tensor::from_slice(&ids).to_device(self.device()).unsqueeze(1); // [B, 1]
            let hidden = match &self.model {
                Model::Decoder(decoder) => decoder.hidden(&ids, None, None, Some(&mut decoding.cache), pass),
                Model::T5(t5) => t5.decode_next(&ids, &mut decoding.cache, pass),
            };
            Ok(self.head(&last(&hidden), pass))
        })
    }

    /// `prompts` as ids and mask [B, T], with room for the pass's virtual tokens before each.
    fn pad<'a>(&self, prompts: &[Vec<u32>], side: Side, pass: &Pass<'a>) -> (Tensor, Tensor, Option<Prompts<'a>>) {
        let virtual_tokens = pass.prompts(prompts.len());
        let room = |row: usize| {
            let own = virtual_tokens.as_ref().and_then(|all| all.get(row).copied().flatten());
            own.map_or(0, |own| own.size()[0] as usize)
        };
        let longest = prompts.iter().enumerate().map(|(row, prompt)| room(row) + prompt.len()).max().unwrap_or(0);
        let (mut ids, mut mask, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for (row, prompt) in prompts.iter().enumerate() {
            let tokens: Vec<i64> = vec![0; room(row)].into_iter().chain(prompt.iter().map(|&id| id as i64)).collect();
            let padding = vec![0i64; longest - tokens.len()];
            let ones = vec![1i64; tokens.len()];
            let (left, right): (&[i64], &[i64]) = match side {
                Side::Left => (&padding, &[]),
                Side::Right => (&[], &padding),
            };
            starts.push(left.len() as i64);
            ids.extend([left, &tokens, right].concat());
            mask.extend([left, &ones, right].concat());
        }
        let tensor = |values: &[i64]| {
            Tensor::from_slice(values).view([prompts.len() as i64, longest as i64]).to_device(self.device())
        };
        let virtual_tokens = virtual_tokens.map(|all| Prompts::new(all, |row| starts[row]));
        (tensor(&ids), tensor(&mask), virtual_tokens)
    }

    fn check_prompts(&self, prompts: &[Vec<u32>], pass: &Pass<'_>) -> Result<()> {
        let virtual_tokens = pass.prompts(prompts.len()).unwrap_or_default();
        if prompts.is_empty() {
            return Err(Error::Request("no prompt; give at least one".into()));
        }
        for (row, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(Error::Request(format!("prompt {row} has no token; give at least one")));
            }
            let before = virtual_tokens.get(row).copied().flatten().map_or(0, |own| own.size()[0]);
            if let Some(limit) = self.config().max_positions().filter(|&limit| before + prompt.len() as i64 > limit) {
                let of_adapter = if before > 0 { format!(" and {before} virtual ones") } else { String::new() };
                let problem = format!("prompt {row} has {} tokens{of_adapter}; the model takes {limit}", prompt.len());
                return Err(Error::Request(problem));
            }
            self.check_tokens(prompt)?;
        }
        Ok(())
    }

    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.config().vocab_size();
        match tokens.iter().find(|&&id| id as i64 >= vocab) {
            Some(id) => Err(Error::Request(format!("token {id} is not below the vocabulary's size {vocab}"))),
            None => Ok(()),
        }
    }
}

enum Side {
    Left,
    Right,
}

/// [B, T, D] → [B, D]
fn last(hidden: &Tensor) -> Tensor {
    hidden.select(1, -1)
}

fn check_rows(pass: &Pass<'_>, rows: usize) -> Result<()> {
    match &pass.adapters {
        crate::Adapters::Rows(routes) if routes.rows() != rows => {
            Err(Error::Request(format!("routes for {} rows, the batch has {rows}", routes.rows())))
        }
        _ => Ok(()),
    }
}
