//! A decoder's step on a CPU in bf16, from the new tokens of many sequences to their logits, in few passes over memory.
//!
//! The same mathematics as [`crate::decoder`], operator by operator, with three differences that make it fast: 4-bit weights
//! are multiplied as they lie ([`tailor_quant::products`]); what lies between two products is one loop and not ten
//! operators; and between two products everything is f32, so it is nearer to the result in f32 than bf16 operators are.
//! What is kept, the keys and values, is bf16.
//!
//! It takes plain LoRA in any mixture of adapters. Whatever else an adapter brings (DoRA, weights of its own) sends the
//! step through the operators: the caller asks [`takes`] first.

mod attention;
mod vector;

use std::cell::RefCell;

use half::bf16;
use tailor_quant::{CompactBf16, Inputs, LowRank, Matrix, Product, Screen, Weights, Workers, products, spread};
use tailor_torch::TorchWorkers;
use tch::{Device, Kind, Tensor};

use crate::decoder::{Attention, Decoder, Layer, Mlp};
use crate::linear::{Linear, Weight};
use crate::norm::RmsNorm;
use crate::pages::{KvPool, Next, Segment};
use crate::pass::Pass;
use crate::spans::GivenRows;
use crate::{LoraSet, Result};

use attention::Attend;
use vector::Norm;

/// Rows from which on work between two products is shared among the threads.
const SHARED_ROWS: usize = 4;

/// Whether a decoder's step can run here at all: on this processor, in this type, with these weights.
pub(crate) fn fits(decoder: &Decoder) -> bool {
    let embedding = decoder.embedding();
    let here = embedding.device() == Device::Cpu && embedding.kind() == Kind::BFloat16;
    here && tailor_quant::is_fast() && decoder.linears().all(takes_linear)
}

fn takes_linear(linear: &Linear) -> bool {
    match &linear.weight {
        Weight::FourBit(weight) => Matrix::new(weight.quantized()).is_some(),
        Weight::Dense(weight) => weight.kind() == Kind::BFloat16 && weight.is_contiguous(),
        Weight::OnDevice(_) => false,
    }
}

/// Whether it takes these adapters.
pub(crate) fn takes(segments: &[Segment<'_>]) -> bool {
    segments.iter().all(|segment| segment.adapter.is_none_or(LoraSet::is_served))
}

/// The head's weight in fewer bytes, where it is in bf16 and its values suit that.
pub(crate) fn compact_head(decoder: &Decoder) -> Option<CompactBf16> {
    match &decoder.lm_head.weight {
        Weight::Dense(weight) => CompactBf16::new(values(weight), *weight.size().last()? as usize, &TorchWorkers),
        Weight::FourBit(_) | Weight::OnDevice(_) => None,
    }
}

/// What tells the largest logit, where logits are the head's product and nothing more.
pub(crate) fn head_screen(decoder: &Decoder) -> Option<Screen> {
    let Linear { weight: Weight::Dense(weight), bias: None, .. } = &decoder.lm_head else { return None };
    // A cap makes equals of the largest ones.
    let is_plain = decoder.logit_softcap.is_none();
    is_plain.then(|| Screen::new(values(weight), *weight.size().last()? as usize, &TorchWorkers)).flatten()
}

/// What a step works in, kept from step to step.
#[derive(Default)]
struct Room {
    x: Vec<f32>, // [N, D]
    input: Inputs,
    inner: Inputs,
    q: Vec<f32>, // [N, H·Dh]
    k: Vec<f32>, // [N, K·Dh]
    v: Vec<f32>,
    gate: Vec<f32>, // [N, F]
    up: Vec<f32>,
    y: Vec<f32>,
    coarse: Vec<f32>, // [rows whose likeliest token is wanted, V]
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// The adapters of a step, each with its rows.
struct Sets<'a>(Vec<(&'a LoraSet, Vec<usize>)>);

impl<'a> Sets<'a> {
    /// `sets`: of each row.
    fn new(sets: impl Iterator<Item = Option<&'a LoraSet>>) -> Self {
        let mut groups: Vec<(&LoraSet, Vec<usize>)> = Vec::new();
        for (row, set) in sets.enumerate() {
            let Some(set) = set else { continue };
            match groups.iter_mut().find(|(known, _)| std::ptr::eq(*known, set)) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((set, vec![row])),
            }
        }
        Self(groups)
    }

    fn terms(&self, slot: usize) -> Vec<LowRank<'_>> {
        self.0.iter().filter_map(|(set, rows)| set.served(slot, rows)).collect()
    }
}

/// # Shapes
/// `ids` [N, 1]: all new tokens → logits [M, V] in f32, a row for each that is wanted and not known to be the likeliest token alone
///
/// # Errors
/// libtorch failed.
pub(crate) fn advance(
    decoder: &Decoder,
    ids: &Tensor,
    given: &GivenRows,
    segments: &[Segment<'_>],
    pool: &KvPool,
) -> Result<Next> {
    let x = given.put_into(decoder.embed(ids, None, &Pass::base()));
    let x = Vec::<f32>::try_from(&x.f_to_kind(Kind::Float)?.f_view([-1])?)?;
    ROOM.with_borrow_mut(|room| {
        room.x = x;
        let sets = segments.iter().flat_map(|s| std::iter::repeat_n(s.adapter, s.tokens.len()));
        let step = Step { decoder, sets: &Sets::new(sets), segments, pool, workers: &TorchWorkers };
        step.run(room)
    })
}

struct Step<'a> {
    decoder: &'a Decoder,
    sets: &'a Sets<'a>,
    segments: &'a [Segment<'a>],
    pool: &'a KvPool,
    workers: &'a dyn Workers,
}

impl Step<'_> {
    fn run(&self, room: &mut Room) -> Result<Next> {
        let places: Vec<usize> = self.segments.iter().flat_map(|s| s.past..s.past + s.tokens.len()).collect();
        let angles: Vec<vector::Angles> =
            self.decoder.kinds.iter().map(|kind| vector::Angles::new(&kind.inverse_frequencies, &places)).collect();
        for (layer, (keys, values)) in self.decoder.layers.iter().zip(&self.pool.layers) {
            let kind = &self.decoder.kinds[layer.kind];
            let attend = Attend {
                segments: self.segments,
                pages: (keys, values),
                window: kind.sliding_window,
                head_dim: layer.self_attn.head_dim as usize,
                scale: layer.self_attn.scale,
                softcap: layer.self_attn.softcap,
                workers: self.workers,
            };
            self.layer(layer, &angles[layer.kind], &attend, room)?;
        }
        self.head(room)
    }

    fn layer(&self, layer: &Layer, angles: &vector::Angles, attend: &Attend<'_>, room: &mut Room) -> Result<()> {
        self.norm(&layer.input_layernorm, room);
        self.attention(&layer.self_attn, angles, attend, room)?;
        self.add(layer.attention_norm.as_ref(), room);
        self.norm(&layer.mlp_input_norm, room);
        self.mlp(&layer.mlp, room);
        self.add(layer.mlp_norm.as_ref(), room);
        Ok(())
    }

    /// The norm of x, as the input of a product.
    fn norm(&self, norm: &RmsNorm, room: &mut Room) {
        let norm = Norm::of(norm);
        let (x, width) = (&room.x, norm.width());
        let input = room.input.resize(x.len() / width, width);
        self.each_row(&mut [(input, width)], |row, out| norm.apply(&x[row * width..][..width], out[0]));
    }

    /// Adds y to x, through a norm where there is one.
    fn add(&self, norm: Option<&RmsNorm>, room: &mut Room) {
        if let Some(norm) = norm {
            let norm = Norm::of(norm);
            let mut normed = vec![0f32; norm.width()];
            for y in room.y.chunks_exact_mut(norm.width()) {
                norm.apply(y, &mut normed);
                y.copy_from_slice(&normed);
            }
        }
        vector::add(&mut room.x, &room.y);
    }

    /// Of `input` to `y`.
    fn attention(
        &self,
        layer: &Attention,
        angles: &vector::Angles,
        attend: &Attend<'_>,
        room: &mut Room,
    ) -> Result<()> {
        let linears = [&layer.q_proj, &layer.k_proj, &layer.v_proj];
        self.products(linears, &mut room.input, [&mut room.q, &mut room.k, &mut room.v]);
        let rows = room.input.rows();
        let head_dim = attend.head_dim;
        let (q_width, k_width) = (room.q.len() / rows, room.k.len() / rows);
        let norms = [layer.q_norm.as_ref().map(Norm::of), layer.k_norm.as_ref().map(Norm::of)];
        self.each_row(&mut [(&mut room.q, q_width), (&mut room.k, k_width)], |row, both| {
            for (heads, norm) in both.iter_mut().zip(norms) {
                for head in heads.chunks_exact_mut(head_dim) {
                    if let Some(norm) = norm {
                        let plain = head.to_vec();
                        norm.apply(&plain, head);
                    }
                    angles.turn(row, head);
                }
            }
        });
        attend.store(&room.k, &room.v);
        let out = room.inner.resize(rows, q_width);
        attend.run(&room.q, k_width / head_dim, out)?;
        self.products([&layer.o_proj], &mut room.inner, [&mut room.y]);
        Ok(())
    }

    /// Of `input` to `y`.
    fn mlp(&self, mlp: &Mlp, room: &mut Room) {
        self.products([&mlp.gate_proj, &mlp.up_proj], &mut room.input, [&mut room.gate, &mut room.up]);
        let rows = room.input.rows();
        let width = room.gate.len() / rows;
        let inner = room.inner.resize(rows, width);
        let (activation, gate, up) = (mlp.activation, &room.gate, &room.up);
        self.each_row(&mut [(inner, width)], |row, out| {
            let part = row * width..(row + 1) * width;
            vector::gated(activation, &gate[part.clone()], &up[part], out[0]);
        });
        self.products([&mlp.down_proj], &mut room.inner, [&mut room.y]);
    }

    /// The likeliest next token where no more is wanted, logits after as many of the last tokens as each other segment wants.
    fn head(&self, room: &mut Room) -> Result<Next> {
        let mut end = 0;
        let ends = self.segments.iter().map(|segment| {
            end += segment.tokens.len();
            end
        });
        let ends: Vec<usize> = ends.collect();
        let likeliest = self.likeliest(&ends, room);
        let with_logits = self.segments.iter().zip(&ends).zip(&likeliest).filter(|(_, likeliest)| likeliest.is_none());
        let rows =
            with_logits.flat_map(|((segment, end), _)| (end - segment.logits..*end).map(move |row| (segment, row)));
        let wanted: Vec<(&Segment<'_>, usize)> = rows.collect();
        let vocab = self.decoder.embedding().size()[0];
        if wanted.is_empty() {
            return Ok(Next { logits: Tensor::f_empty([0, vocab], (Kind::Float, Device::Cpu))?, likeliest });
        }
        let rows: Vec<usize> = wanted.iter().map(|(_, row)| *row).collect();
        self.ends(&rows, &room.x, &mut room.input);
        let sets = Sets::new(wanted.iter().map(|(segment, _)| segment.adapter));
        let head = Step { sets: &sets, ..*self };
        head.products([&self.decoder.lm_head], &mut room.input, [&mut room.y]);
        if let Some(cap) = self.decoder.logit_softcap {
            room.y.iter_mut().for_each(|y| *y = ((f64::from(*y) / cap).tanh() * cap) as f32);
        }
        let logits = Tensor::f_from_slice(&room.y)?.f_view([wanted.len() as i64, -1])?;
        Ok(Next { logits, likeliest })
    }

    /// Of each segment the likeliest next token, where that is all that is wanted and no adapter changes the head. None of those
    /// that need their logits for it after all.
    ///
    /// `ends`: after the last row of each segment.
    fn likeliest(&self, ends: &[usize], room: &mut Room) -> Vec<Option<u32>> {
        let mut likeliest = vec![None; self.segments.len()];
        let head = &self.decoder.lm_head;
        let Some(screen) = &self.decoder.head_screen else { return likeliest };
        let is_plain = |segment: &Segment<'_>| segment.adapter.is_none_or(|set| set.change(head.slot).is_none());
        let segments = self.segments.iter().enumerate().filter(|(_, segment)| segment.likeliest && is_plain(segment));
        let segments: Vec<usize> = segments.map(|(at, _)| at).collect();
        if segments.is_empty() {
            return likeliest;
        }
        let rows: Vec<usize> = segments.iter().map(|at| ends[*at] - 1).collect();
        self.ends(&rows, &room.x, &mut room.input);
        let weights = self.weights(head).0;
        let found = screen.largest(weights, &mut room.input, &mut room.coarse, self.workers);
        segments.into_iter().zip(found).for_each(|(at, found)| likeliest[at] = found);
        likeliest
    }

    /// Some rows of x through the last norm.
    fn ends(&self, rows: &[usize], x: &[f32], input: &mut Inputs) {
        let norm = Norm::of(&self.decoder.norm);
        let width = norm.width();
        let input = input.resize(rows.len(), width);
        for (row, out) in rows.iter().zip(input.chunks_exact_mut(width)) {
            norm.apply(&x[row * width..][..width], out);
        }
    }

    /// A linear layer's weight and outputs. What [`fits`] has let through.
    fn weights<'b>(&'b self, linear: &'b Linear) -> (Weights<'b>, usize) {
        match (&linear.weight, &self.decoder.compact_head) {
            (_, Some(compact)) if std::ptr::eq(linear, &self.decoder.lm_head) => {
                (Weights::Compact(compact), compact.out())
            }
            (Weight::FourBit(weight), _) => {
                let matrix = Matrix::new(weight.quantized()).unwrap_or_else(|| panic!("looked at when it was loaded"));
                (Weights::FourBit(matrix), matrix.out())
            }
            (Weight::Dense(weight), _) => (Weights::Bf16(values(weight)), weight.size()[0] as usize),
            (Weight::OnDevice(_), _) => panic!("looked at when it was loaded"),
        }
    }

    /// The linear layers with their adapters, of one input.
    fn products<const N: usize>(&self, linears: [&Linear; N], x: &mut Inputs, outputs: [&mut Vec<f32>; N]) {
        x.prepare(linears.iter().any(|linear| matches!(linear.weight, Weight::FourBit(_))), self.workers);
        let terms = linears.map(|linear| self.sets.terms(linear.slot));
        let mut all = Vec::with_capacity(N);
        for ((linear, terms), y) in linears.iter().zip(&terms).zip(outputs) {
            let (weights, out) = self.weights(linear);
            y.resize(x.rows() * out, 0.0);
            all.push(Product { weights, bias: linear.bias.as_ref().map(values), low_rank: terms, y });
        }
        products(x, &mut all, self.workers);
    }

    /// Calls `work` with each row of the outputs, on all threads where there are many.
    fn each_row<const N: usize>(
        &self,
        outputs: &mut [(&mut [f32], usize); N],
        work: impl Fn(usize, &mut [&mut [f32]; N]) + Sync,
    ) {
        let rows = outputs[0].0.len() / outputs[0].1;
        let places: [(vector::Place, usize); N] =
            std::array::from_fn(|i| (vector::Place(outputs[i].0.as_mut_ptr()), outputs[i].1));
        let one = |row: usize| {
            // SAFETY: rows of each output, which no other call has.
            let mut of_row = std::array::from_fn(|i| unsafe { places[i].0.slice(row * places[i].1, places[i].1) });
            work(row, &mut of_row);
        };
        if rows < SHARED_ROWS { (0..rows).for_each(one) } else { spread(self.workers, rows, &one) }
    }
}

/// A contiguous bf16 tensor on the CPU as a slice.
pub(crate) fn values(tensor: &Tensor) -> &[bf16] {
    assert!(tensor.kind() == Kind::BFloat16 && tensor.device() == Device::Cpu && tensor.is_contiguous());
    // SAFETY: the tensor lives as long as the slice; nobody writes to weights while a step runs.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<bf16>(), tensor.numel()) }
}
