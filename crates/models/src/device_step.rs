//! A decoder's step over few rows where kernels are: what [`crate::decoder`] computes, by launches that write where the next
//! one reads. Decoding waits for the host otherwise: a token of an 8B model takes a GPU about a millisecond, and so do two
//! hundred operators of libtorch's.
//!
//! 4-bit weights are multiplied as they lie, keys and values stay in their pages, and the adapters of all rows are added by
//! two launches for each group of layers. Longer pieces of prompts go by the operators, where dequantised weights and
//! products of libtorch's are faster; so do adapters that have more than plain LoRA: the caller asks [`takes`] first.

use std::cell::RefCell;

use tailor_torch::Gate;
use tailor_torch::device::step::{self, FEW_ROWS, Looks, LowRankRow, LowRankTerms, StepNumbers, StepRow};
use tailor_torch::device::{DeviceWeight, has_kernels};
use tch::{Kind, Tensor};

use crate::decoder::{Attention, Decoder, Layer, Mlp};
use crate::linear::{Linear, Weight};
use crate::norm::{NormScale, RmsNorm};
use crate::pages::{BLOCK_TOKENS, KvPool, Segment};
use crate::pass::Pass;
use crate::spans::GivenRows;
use crate::{Activation, LoraSet, Result};

/// Whether a decoder's steps can run here at all: where it is, in this type, with these layers.
pub(crate) fn fits(decoder: &Decoder) -> bool {
    let embedding = decoder.embedding();
    embedding.kind() == Kind::BFloat16 && has_kernels(embedding) && decoder.layers.iter().all(takes_layer)
}

fn takes_layer(layer: &Layer) -> bool {
    let attention = &layer.self_attn;
    attention.q_norm.is_none()
        && attention.k_norm.is_none()
        && step::attends(attention.head_dim)
        && gate(layer.mlp.activation).is_some()
        && layer.linears().into_iter().all(|linear| linear.bias.is_none() && weight(linear).is_some())
}

fn weight(linear: &Linear) -> Option<&DeviceWeight> {
    match &linear.weight {
        Weight::OnDevice(weight) if weight.is_direct() => Some(weight),
        _ => None,
    }
}

fn gate(activation: Activation) -> Option<Gate> {
    match activation {
        Activation::Silu => Some(Gate::Silu),
        Activation::GeluTanh => Some(Gate::GeluTanh),
        Activation::Gelu | Activation::Relu => None,
    }
}

/// Whether it takes so many rows, and these adapters.
pub(crate) fn takes(segments: &[Segment<'_>]) -> bool {
    segments.iter().map(|segment| segment.tokens.len()).sum::<usize>() <= FEW_ROWS
        && segments.iter().all(|segment| segment.adapter.is_none_or(LoraSet::is_served))
}

/// # Shapes
/// `ids` [N, 1]: all new tokens → [N, 1, D] after the last norm
///
/// # Errors
/// libtorch or a kernel failed.
pub(crate) fn hidden(
    decoder: &Decoder,
    ids: &Tensor,
    given: &GivenRows,
    segments: &[Segment<'_>],
    pool: &KvPool,
) -> Result<Tensor> {
    let rows = segments.iter().flat_map(|segment| {
        (0..segment.tokens.len()).map(|at| StepRow { position: segment.past + at, blocks: segment.blocks })
    });
    let numbers = StepNumbers::new(&rows.collect::<Vec<_>>(), BLOCK_TOKENS, ids.device())?;
    let x = given.put_into(decoder.embed(ids, None, &Pass::base())).f_contiguous()?;
    let x = x.f_view([ids.size()[0], -1])?; // [N, D]
    let sets = segments.iter().flat_map(|segment| std::iter::repeat_n(segment.adapter, segment.tokens.len()));
    with_terms(decoder, &sets.collect::<Vec<_>>(), |terms| {
        let run = Run { decoder, numbers: &numbers, terms, room: Room::new(decoder, &x, terms)?, x };
        for (layer, (keys, values)) in decoder.layers.iter().zip(&pool.layers) {
            run.layer(layer, (keys, values))?;
        }
        run.norm(&decoder.norm, &run.x, &run.room.normed)?;
        Ok(run.room.normed.f_unsqueeze(1)?)
    })
}

/// What a step works in.
struct Room {
    normed: Tensor,   // [N, D]
    y: Tensor,        // [N, D], where a norm follows what a layer gives
    heads: Tensor,    // [N, (H + 2K)·Dh]
    attended: Tensor, // [N, H·Dh]
    both: Tensor,     // [N, 2F]
    gated: Tensor,    // [N, F]
    inner: Tensor,    // f32, what LoRA has between A and B
    roots: Tensor,    // [N] f32
}

impl Room {
    fn new(decoder: &Decoder, x: &Tensor, terms: Option<&LowRankTerms>) -> Result<Self> {
        let rows = x.size()[0];
        let of = |width: i64| Tensor::f_empty([rows, width], (x.kind(), x.device()));
        let floats = |count: i64| Tensor::f_empty([count], (Kind::Float, x.device()));
        let out = |linear: &Linear| weight(linear).map_or(0, DeviceWeight::out_features);
        let widest = |width: &dyn Fn(&Layer) -> i64| decoder.layers.iter().map(width).max().unwrap_or(0);
        let attended = widest(&|layer| out(&layer.self_attn.q_proj));
        let heads = widest(&|Layer { self_attn: own, .. }| out(&own.q_proj) + out(&own.k_proj) + out(&own.v_proj));
        let inner = widest(&|layer| out(&layer.mlp.gate_proj));
        let most = terms.map_or(0, LowRankTerms::most);
        Ok(Self {
            normed: x.f_empty_like()?,
            y: x.f_empty_like()?,
            heads: of(heads)?,
            attended: of(attended)?,
            both: of(2 * inner)?,
            gated: of(inner)?,
            inner: floats(3 * rows * most)?,
            roots: floats(rows)?,
        })
    }
}

struct Run<'a> {
    decoder: &'a Decoder,
    numbers: &'a StepNumbers,
    terms: Option<&'a LowRankTerms>,
    room: Room,
    x: Tensor, // [N, D]
}

impl Run<'_> {
    fn layer(&self, layer: &Layer, pages: (&Tensor, &Tensor)) -> Result<()> {
        self.norm(&layer.input_layernorm, &self.x, &self.room.normed)?;
        self.attention(layer, pages)?;
        self.norm(&layer.mlp_input_norm, &self.x, &self.room.normed)?;
        self.mlp(&layer.mlp, layer.mlp_norm.as_ref())
    }

    fn norm(&self, norm: &RmsNorm, x: &Tensor, y: &Tensor) -> Result<()> {
        let one_plus = norm.scale == NormScale::OnePlusWeight;
        Ok(step::norm(x, &norm.weight.tensor, norm.eps, one_plus, y, &self.room.roots)?)
    }

    fn attention(&self, layer: &Layer, pages: (&Tensor, &Tensor)) -> Result<()> {
        let Attention { q_proj, k_proj, v_proj, o_proj, head_dim, scale, softcap, .. } = &layer.self_attn;
        let kind = &self.decoder.kinds[layer.kind];
        let heads = weight(q_proj).map_or(0, DeviceWeight::out_features) / head_dim;
        let room = &self.room;
        self.product([q_proj, k_proj, v_proj], &room.normed, false, &room.heads)?;
        step::turn_and_keep(&room.heads, &kind.inverse_frequencies, self.numbers, pages, heads)?;
        let looks = Looks { heads, window: kind.sliding_window, scale: *scale, softcap: *softcap };
        step::attend(&room.heads, self.numbers, pages, looks, &room.attended)?;
        self.add(o_proj, &room.attended, layer.attention_norm.as_ref())
    }

    fn mlp(&self, mlp: &Mlp, norm: Option<&RmsNorm>) -> Result<()> {
        let room = &self.room;
        self.product([&mlp.gate_proj, &mlp.up_proj], &room.normed, false, &room.both)?;
        let Some(gate) = gate(mlp.activation) else { panic!("looked at when it was loaded") };
        step::gated(&room.both, gate, &room.gated)?;
        self.add(&mlp.down_proj, &room.gated, norm)
    }

    /// Adds what a layer gives to x, through a norm where there is one.
    fn add(&self, linear: &Linear, input: &Tensor, norm: Option<&RmsNorm>) -> Result<()> {
        let Some(norm) = norm else { return self.product([linear], input, true, &self.x) };
        let room = &self.room;
        self.product([linear], input, false, &room.y)?;
        self.norm(norm, &room.y, &room.normed)?;
        let _ = self.x.shallow_clone().f_add_(&room.normed)?;
        Ok(())
    }

    /// The linear layers, which follow one another in the base, with the rows' adapters.
    fn product<const N: usize>(&self, linears: [&Linear; N], x: &Tensor, add: bool, y: &Tensor) -> Result<()> {
        let weights = linears.map(|linear| weight(linear).unwrap_or_else(|| panic!("looked at when it was loaded")));
        step::product(x, &weights, add, y)?;
        if let Some(terms) = self.terms {
            let outs = weights.map(DeviceWeight::out_features);
            step::low_rank(x, terms, linears[0].slot, &outs, &self.room.inner, y)?;
        }
        Ok(())
    }
}

/// The adapters of a step's rows, by the numbers that serving gave them, and where their factors lie.
type Known = (Vec<Option<u64>>, LowRankTerms);

thread_local! {
    /// Those of the last step: most steps have the rows of the one before.
    static LAST: RefCell<Option<Known>> = const { RefCell::new(None) };
}

/// Calls `run` with the terms of the rows' sets; none where no row has an adapter.
fn with_terms<T>(
    decoder: &Decoder,
    sets: &[Option<&LoraSet>],
    run: impl FnOnce(Option<&LowRankTerms>) -> Result<T>,
) -> Result<T> {
    if sets.iter().all(Option::is_none) {
        return run(None);
    }
    let names: Vec<Option<u64>> = sets.iter().map(|set| set.and_then(LoraSet::served_as)).collect();
    LAST.with_borrow_mut(|last| {
        if last.as_ref().is_none_or(|(known, _)| *known != names) {
            let embedding = decoder.embedding();
            let rows = decoder.layers.iter().flat_map(Layer::linears).flat_map(|linear| {
                sets.iter().map(|set| {
                    let lora = set.as_ref()?.change(linear.slot)?.lora.as_ref()?;
                    Some(LowRankRow { a: &lora.a, b: &lora.b, scale: lora.scale })
                })
            });
            *last = Some((names, LowRankTerms::new(&rows.collect::<Vec<_>>(), embedding.device())?));
        }
        run(last.as_ref().map(|(_, terms)| terms))
    })
}
