//! A paged cache (vLLM, arXiv 2309.06180 §4.1): keys and values in blocks of a few tokens, so that sequences of any length
//! share one store without gaps, and blocks of a common beginning are kept once.
//!
//! This file holds the memory and runs the model over it; which blocks belong to whom is the caller's to know. Prompts may
//! be read in pieces, and pieces, whole prompts and single tokens of other sequences go through the model together.

use tailor_torch::device::step::FEW_ROWS;
use tch::{Kind, Tensor, no_grad};

use crate::base::{Model, Steps};
use crate::device_step;
use crate::fused;
use crate::lora::LoraSet;
use crate::pass::{Pass, Routes};
use crate::spans::{GivenRows, Span};
use crate::{Base, Compute, Config, Error, Result};

/// Tokens in a block.
pub const BLOCK_TOKENS: usize = 16;

/// Keys and values of every layer.
pub struct KvPool {
    pub(crate) layers: Vec<(Tensor, Tensor)>, // [blocks·16, K, Dh]
    blocks: usize,
}

impl KvPool {
    pub fn blocks(&self) -> usize {
        self.blocks
    }
}

/// New tokens of one sequence. The virtual tokens of its adapter are its first tokens (an encoder-decoder's input's); what
/// number stands in their places does not matter.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    /// At least one.
    pub tokens: &'a [u32],
    /// Tokens of the sequence that are in its blocks already.
    pub past: usize,
    /// Blocks of the sequence in order, with room for the new tokens.
    pub blocks: &'a [u32],
    /// Of an encoder-decoder: where [`Base::encode_pages`] put the encoder's side, and of how many tokens.
    pub cross: Option<(&'a [u32], usize)>,
    pub adapter: Option<&'a LoraSet>,
    /// After how many of the last tokens logits are wanted.
    pub logits: usize,
    /// Whether nothing is wanted of the logits after the last token, which must be the only ones, but which token is likeliest.
    pub likeliest: bool,
}

/// What comes of a step.
pub struct Next {
    /// A row for each that is wanted, in the segments' order, but for those of [`Self::likeliest`].
    pub logits: Tensor, // [M, V]
    /// Of each segment the likeliest next token (the first of equals), where no more was wanted and it is known without logits.
    pub likeliest: Vec<Option<u32>>,
}

/// The input of an encoder, and the blocks for what the decoder's cross-attention needs of it.
#[derive(Clone, Copy)]
pub struct EncoderInput<'a> {
    pub tokens: &'a [u32],
    pub blocks: &'a [u32],
    pub adapter: Option<&'a LoraSet>,
}

impl Config {
    /// Bytes of a block of keys and values.
    pub fn block_bytes(&self, compute: Compute) -> usize {
        let (layers, heads, head_dim) = self.kv_shape();
        2 * layers * heads * head_dim * BLOCK_TOKENS * compute.kind().elt_size_in_bytes()
    }

    /// Decoder layers, key/value heads, head dimension.
    fn kv_shape(&self) -> (usize, usize, usize) {
        match self {
            Self::Decoder(config) => {
                (config.layers.len(), config.num_key_value_heads as usize, config.head_dim as usize)
            }
            Self::T5(config) => (config.num_decoder_layers as usize, config.num_heads as usize, config.d_kv as usize),
        }
    }
}

impl Base {
    /// Bytes of one block over all layers.
    pub fn block_bytes(&self) -> usize {
        self.config().block_bytes(self.compute())
    }

    /// Room for so many blocks. On a CPU the system gives the memory as it is first written.
    ///
    /// # Errors
    /// No memory.
    pub fn kv_pool(&self, blocks: usize) -> Result<KvPool> {
        let (layers, heads, head_dim) = self.config().kv_shape();
        let size = [(blocks * BLOCK_TOKENS) as i64, heads as i64, head_dim as i64];
        let options = (self.compute().kind(), self.device());
        let empty = || Tensor::f_empty(size.as_slice(), options);
        let layers = (0..layers).map(|_| Ok((empty()?, empty()?))).collect::<Result<_>>()?;
        Ok(KvPool { layers, blocks })
    }

    /// Takes the new tokens of all segments, which all want logits, through the model.
    ///
    /// # Shapes
    /// → logits [M, V], a row for each that is wanted, in the segments' order
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn advance(&self, segments: &[Segment<'_>], pool: &KvPool) -> Result<Tensor> {
        let segments: Vec<Segment<'_>> =
            segments.iter().map(|segment| Segment { likeliest: false, ..*segment }).collect();
        Ok(self.next(&segments, pool)?.logits)
    }

    /// Takes the new tokens of all segments through the model.
    ///
    /// Going again with the same segments after a failure is allowed: blocks are written before they are read.
    ///
    /// # Errors
    /// No segment; one without tokens or room, or that wants what it cannot have; a token that the model does not have; libtorch
    /// failed.
    pub fn next(&self, segments: &[Segment<'_>], pool: &KvPool) -> Result<Next> {
        if segments.is_empty() {
            return Err(Error::Request("no segment; give at least one".into()));
        }
        for segment in segments {
            self.check_tokens(segment.tokens)?;
            check_room(segment.blocks, segment.past + segment.tokens.len(), segment.tokens, pool)?;
            if segment.logits > segment.tokens.len() {
                let (wanted, tokens) = (segment.logits, segment.tokens.len());
                return Err(Error::Request(format!(
                    "logits after {wanted} tokens are wanted of a segment of {tokens}"
                )));
            }
            if segment.likeliest && segment.logits != 1 {
                let wanted = segment.logits;
                return Err(Error::Request(format!(
                    "the likeliest token is wanted after {wanted} tokens, and not after 1"
                )));
            }
            if let Some((blocks, length)) = segment.cross {
                check_room(blocks, length, segment.tokens, pool)?;
            }
            if segment.cross.is_some() != matches!(self.model, Model::T5(_)) {
                return Err(Error::Request("an encoder's side is for encoder-decoders, which always have one".into()));
            }
        }
        let groups = self.groups(segments);
        match groups.as_slice() {
            [_] => self.together(segments, pool),
            groups => Ok(Next::of(self.apart(segments, groups, pool)?, segments)),
        }
    }

    /// Which segments go through the model together: all, but where kernels take few rows at a time those that are decoded go by
    /// them whatever else is in the step, so that nobody's prompt changes a bit of theirs.
    fn groups(&self, segments: &[Segment<'_>]) -> Vec<Vec<usize>> {
        if self.steps != Steps::OnDevice || device_step::takes(segments) {
            return vec![(0..segments.len()).collect()];
        }
        let (decoded, others): (Vec<usize>, Vec<usize>) = (0..segments.len())
            .partition(|at| device_step::takes(&segments[*at..=*at]) && segments[*at].tokens.len() == 1);
        let others = (!others.is_empty()).then_some(others);
        decoded.chunks(FEW_ROWS).map(<[usize]>::to_vec).chain(others).collect()
    }

    /// Group after group, where nothing knows a token without logits; they come in the segments' order.
    fn apart(&self, segments: &[Segment<'_>], groups: &[Vec<usize>], pool: &KvPool) -> Result<Tensor> {
        let (mut parts, mut order) = (Vec::new(), Vec::<usize>::new());
        for group in groups {
            let own: Vec<Segment<'_>> = group.iter().map(|at| segments[*at]).collect();
            parts.push(self.together(&own, pool)?.logits);
            order.extend(group.iter().flat_map(|at| std::iter::repeat_n(*at, segments[*at].logits)));
        }
        let mut places: Vec<i64> = (0..order.len() as i64).collect();
        places.sort_by_key(|place| order[*place as usize]);
        Ok(Tensor::f_cat(&parts, 0)?.f_index_select(0, &self.index(&places))?)
    }

    fn together(&self, segments: &[Segment<'_>], pool: &KvPool) -> Result<Next> {
        no_grad(|| {
            let lengths: Vec<usize> = segments.iter().map(|segment| segment.tokens.len()).collect();
            let sets: Vec<Option<&LoraSet>> = segments.iter().map(|segment| segment.adapter).collect();
            let routes = Routes::new(&repeated(&sets, &lengths), self.device());
            let pass = Pass::rows(&routes);
            let ids = self.flat_ids(segments.iter().map(|segment| segment.tokens)); // [N, 1]
            if let Model::Decoder(decoder) = &self.model
                && self.steps == Steps::Fused
                && fused::takes(segments)
            {
                return fused::advance(decoder, &ids, &virtual_rows(starts(segments)), segments, pool);
            }
            let given = virtual_rows(starts(segments));
            let hidden = match &self.model {
                Model::Decoder(decoder) if self.steps == Steps::OnDevice && device_step::takes(segments) => {
                    device_step::hidden(decoder, &ids, &given, segments, pool)?
                }
                model => self.hidden_by_operators(model, &ids, &given, segments, pool, &pass),
            }; // [N, 1, D]
            let ends = starts(segments).map(|(_, _, count, start)| start + count as i64 - 1);
            let wanted = ends.zip(segments).flat_map(|(end, s)| end + 1 - s.logits as i64..=end);
            let wanted: Vec<i64> = wanted.collect();
            let wanting = segments.iter().flat_map(|s| std::iter::repeat_n(s.adapter, s.logits));
            let wanting: Vec<Option<&LoraSet>> = wanting.collect();
            if wanted.is_empty() {
                let none = Tensor::f_empty([0, self.config().vocab_size()], (Kind::Float, self.device()))?;
                return Ok(Next::of(none, segments));
            }
            let last = hidden.squeeze_dim(1).index_select(0, &self.index(&wanted)); // [M, D]
            let routes = Routes::new(&wanting, self.device());
            Ok(Next::of(self.head(&last, &Pass::rows(&routes)), segments))
        })
    }

    /// # Shapes
    /// `ids` [N, 1] → [N, 1, D]
    fn hidden_by_operators(
        &self,
        model: &Model,
        ids: &Tensor,
        given: &GivenRows,
        segments: &[Segment<'_>],
        pool: &KvPool,
        pass: &Pass<'_>,
    ) -> Tensor {
        let spans = self.spans(segments.iter().map(|s| (s.blocks, s.past, s.tokens.len())));
        let write = self.written(segments.iter().map(|s| (s.blocks, s.past, s.tokens.len())));
        match model {
            Model::Decoder(decoder) => decoder.hidden_paged(ids, given, &spans, &write, pool, pass),
            Model::T5(t5) => {
                let cross = segments.iter().filter_map(|segment| segment.cross);
                let cross: Vec<Span> = cross
                    .zip(&spans)
                    .map(|((blocks, length), span)| {
                        let slots = Some(self.index(&slots(blocks, 0, length)));
                        // All the encoder's keys were there before.
                        Span { start: span.start, count: span.count, slots, past: length as i64 - span.count }
                    })
                    .collect();
                t5.hidden_paged(ids, &spans, &cross, &write, pool, pass)
            }
        }
    }

    /// Runs the encoder over whole inputs and keeps, for each decoder layer, the keys and values of its states.
    ///
    /// # Errors
    /// The base has no encoder; no input; an input without tokens or room; libtorch failed.
    pub fn encode_pages(&self, inputs: &[EncoderInput<'_>], pool: &KvPool) -> Result<()> {
        let Model::T5(t5) = &self.model else {
            return Err(Error::Request(format!("a model of type {} has no encoder", self.config().model_type())));
        };
        if inputs.is_empty() {
            return Err(Error::Request("no input; give at least one".into()));
        }
        for input in inputs {
            self.check_tokens(input.tokens)?;
            check_room(input.blocks, input.tokens.len(), input.tokens, pool)?;
        }
        no_grad(|| {
            let lengths: Vec<usize> = inputs.iter().map(|input| input.tokens.len()).collect();
            let sets: Vec<Option<&LoraSet>> = inputs.iter().map(|input| input.adapter).collect();
            let routes = Routes::new(&repeated(&sets, &lengths), self.device());
            let ids = self.flat_ids(inputs.iter().map(|input| input.tokens));
            let mut start = 0;
            let spans = lengths.iter().map(|&count| {
                let first = start;
                start += count as i64;
                Span { start: first, count: count as i64, slots: None, past: 0 }
            });
            let spans: Vec<Span> = spans.collect();
            let write = self.written(inputs.iter().map(|input| (input.blocks, 0, input.tokens.len())));
            let starts = spans.iter().zip(inputs).map(|(span, i)| (i.adapter, 0, i.tokens.len(), span.start));
            t5.encode_paged(&ids, &virtual_rows(starts), &spans, &write, pool, &Pass::rows(&routes));
            Ok(())
        })
    }

    fn spans<'a>(&self, segments: impl Iterator<Item = (&'a [u32], usize, usize)>) -> Vec<Span> {
        let mut start = 0;
        segments
            .map(|(blocks, past, count)| {
                let first = start;
                start += count as i64;
                let slots = Some(self.index(&slots(blocks, 0, past + count)));
                Span { start: first, count: count as i64, slots, past: past as i64 }
            })
            .collect()
    }

    /// The places of all new tokens [N].
    fn written<'a>(&self, segments: impl Iterator<Item = (&'a [u32], usize, usize)>) -> Tensor {
        let places = segments.flat_map(|(blocks, past, count)| slots(blocks, past, past + count));
        self.index(&places.collect::<Vec<_>>())
    }

    /// All tokens, one after another → [N, 1]
    fn flat_ids<'a>(&self, tokens: impl Iterator<Item = &'a [u32]>) -> Tensor {
        let ids: Vec<i64> = tokens.flatten().map(|&id| i64::from(id)).collect();
        self.index(&ids).unsqueeze(1)
    }

    fn index(&self, values: &[i64]) -> Tensor {
        Tensor::from_slice(values).to_device(self.device())
    }
}

impl Next {
    /// Of all segments logits.
    fn of(logits: Tensor, segments: &[Segment<'_>]) -> Self {
        Self { logits, likeliest: vec![None; segments.len()] }
    }
}

/// Adapter, past, count and first row of each segment.
fn starts<'a>(segments: &'a [Segment<'a>]) -> impl Iterator<Item = (Option<&'a LoraSet>, usize, usize, i64)> {
    let mut start = 0;
    segments.iter().map(move |segment| {
        let first = start;
        start += segment.tokens.len() as i64;
        (segment.adapter, segment.past, segment.tokens.len(), first)
    })
}

/// The rows that are virtual tokens, from each sequence's adapter, past, count and first row.
fn virtual_rows<'a>(sequences: impl Iterator<Item = (Option<&'a LoraSet>, usize, usize, i64)>) -> GivenRows {
    let rows = sequences.filter_map(|(adapter, past, count, start)| {
        let prompt = adapter?.prompt()?;
        let (past, count) = (past as i64, count as i64);
        let new = (prompt.size()[0] - past).min(count);
        (new > 0).then(|| (start, prompt.narrow(0, past, new)))
    });
    GivenRows(rows.collect())
}

/// Places of the tokens `from..to` of a sequence.
fn slots(blocks: &[u32], from: usize, to: usize) -> Vec<i64> {
    let place = |at: usize| i64::from(blocks[at / BLOCK_TOKENS]) * BLOCK_TOKENS as i64 + (at % BLOCK_TOKENS) as i64;
    (from..to).map(place).collect()
}

fn repeated<'a>(sets: &[Option<&'a LoraSet>], lengths: &[usize]) -> Vec<Option<&'a LoraSet>> {
    sets.iter().zip(lengths).flat_map(|(set, &length)| std::iter::repeat_n(*set, length)).collect()
}

fn check_room(blocks: &[u32], length: usize, tokens: &[u32], pool: &KvPool) -> Result<()> {
    let room = blocks.len() * BLOCK_TOKENS;
    if tokens.is_empty() || length > room {
        let new = tokens.len();
        return Err(Error::Request(format!("{new} new tokens of {length} in blocks for {room}: at least 1, no more")));
    }
    match blocks.iter().find(|&&block| block as usize >= pool.blocks) {
        Some(block) => Err(Error::Request(format!("block {block} is not below the pool's {}", pool.blocks))),
        None => Ok(()),
    }
}
