//! Attention of a step's new tokens over the pages, sequence by sequence.
//!
//! A token or a few are attended to here: for each group of heads that share keys, each key is read once. Pieces of a prompt
//! go through libtorch's kernel in f32.

use half::bf16;
use tailor_quant::{Workers, spread};
use tch::{Kind, Tensor};

use super::vector::{Place, add_scaled, dot, softmax, widen};
use crate::Result;
use crate::attention::attend;
use crate::pages::{BLOCK_TOKENS, Segment};
use crate::spans::{Span, SpanMask};

/// New tokens of a sequence that are attended to here; more are a piece of a prompt.
const FEW: usize = 4;

pub(super) struct Attend<'a> {
    pub segments: &'a [Segment<'a>],
    /// Of this layer [slots, K, Dh] in bf16.
    pub pages: (&'a Tensor, &'a Tensor),
    pub window: Option<i64>,
    pub head_dim: usize,
    pub scale: f64,
    pub softcap: Option<f64>,
    pub workers: &'a dyn Workers,
}

/// One new token among all rows.
struct Query<'a> {
    row: usize,
    position: usize,
    blocks: &'a [u32],
}

/// Place of a sequence's token in the pages.
fn slot(blocks: &[u32], at: usize) -> usize {
    blocks[at / BLOCK_TOKENS] as usize * BLOCK_TOKENS + at % BLOCK_TOKENS
}

impl Attend<'_> {
    /// Puts the new keys and values [N, K·Dh] into the pages.
    pub fn store(&self, k: &[f32], v: &[f32]) {
        let tokens = self.segments.iter().flat_map(|s| (s.past..s.past + s.tokens.len()).map(|at| slot(s.blocks, at)));
        let slots: Vec<usize> = tokens.collect();
        let width = k.len() / slots.len();
        for (pages, new) in [(self.pages.0, k), (self.pages.1, v)] {
            let pages = pages_of(pages);
            for (slot, new) in slots.iter().zip(new.chunks_exact(width)) {
                // SAFETY: `advance` has seen that every block is one of the pool's, and only this thread uses it now.
                let to = unsafe { std::slice::from_raw_parts_mut(pages.add(slot * width), width) };
                for (to, new) in to.iter_mut().zip(new) {
                    *to = bf16::from_f32(*new);
                }
            }
        }
    }

    /// # Shapes
    /// `q` [N, H·Dh] → `out` [N, H·Dh]; `kv_heads` is K
    ///
    /// # Errors
    /// libtorch failed.
    pub fn run(&self, q: &[f32], kv_heads: usize, out: &mut [f32]) -> Result<()> {
        let width = q.len() / self.segments.iter().map(|s| s.tokens.len()).sum::<usize>();
        let (mut queries, mut row) = (Vec::new(), 0);
        for segment in self.segments {
            let count = segment.tokens.len();
            if count <= FEW {
                let of = |at| Query { row: row + at, position: segment.past + at, blocks: segment.blocks };
                queries.extend((0..count).map(of));
            } else {
                let part = row * width..(row + count) * width;
                self.piece(segment, &q[part.clone()], &mut out[part])?;
            }
            row += count;
        }
        let place = Place(out.as_mut_ptr());
        let group_width = width / kv_heads;
        let values = |pages: &Tensor| {
            // SAFETY: the pages live longer than this call, in which nobody writes to them.
            unsafe { std::slice::from_raw_parts(pages_of(pages).cast_const(), pages.numel()) }
        };
        let over = Over {
            keys: values(self.pages.0),
            values: values(self.pages.1),
            kv_heads,
            head_dim: self.head_dim,
            window: self.window.map(|window| window.max(1) as usize),
            scale: self.scale as f32,
            softcap: self.softcap,
        };
        spread(self.workers, queries.len() * kv_heads, &|task| {
            let (query, group) = (&queries[task / kv_heads], task % kv_heads);
            let first = query.row * width + group * group_width;
            // SAFETY: this query's heads of this group, which no other task has.
            let out = unsafe { place.slice(first, group_width) };
            over.one(query, group, &q[first..first + group_width], out);
        });
        Ok(())
    }

    /// A piece of a prompt: `q` and `out` [T, H·Dh].
    fn piece(&self, segment: &Segment<'_>, q: &[f32], out: &mut [f32]) -> Result<()> {
        let count = segment.tokens.len() as i64;
        let span = Span { start: 0, count, slots: None, past: segment.past as i64 };
        let SpanMask { first, mask } = SpanMask::causal(&span, self.window, tch::Device::Cpu);
        let q = Tensor::f_from_slice(q)?.f_view([1, count, -1, self.head_dim as i64])?.f_transpose(1, 2)?; // [1, H, T, Dh]
        let slots: Vec<i64> =
            (first as usize..segment.past + segment.tokens.len()).map(|at| slot(segment.blocks, at) as i64).collect();
        let slots = Tensor::f_from_slice(&slots)?;
        let gather = |pages: &Tensor| -> Result<Tensor> {
            let rows = pages.f_index_select(0, &slots)?;
            // Where scores are capped, the operators want one type.
            let rows = if self.softcap.is_some() { rows.f_to_kind(Kind::Float)? } else { rows };
            Ok(rows.f_transpose(0, 1)?.f_unsqueeze(0)?) // [1, K, S, Dh]
        };
        let attended =
            attend(&q, &gather(self.pages.0)?, &gather(self.pages.1)?, &mask, self.scale, self.softcap).contiguous();
        attended.f_copy_data(out, attended.numel())?;
        Ok(())
    }
}

/// What a query looks at, as threads may share it.
struct Over<'a> {
    keys: &'a [bf16], // [slots, K, Dh]
    values: &'a [bf16],
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    scale: f32,
    softcap: Option<f64>,
}

impl Over<'_> {
    /// One token, the heads [G·Dh] that share the keys of one head.
    fn one(&self, query: &Query<'_>, group: usize, q: &[f32], out: &mut [f32]) {
        let Query { position, blocks, .. } = *query;
        let head_dim = self.head_dim;
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let seen = position + 1 - first;
        let mut scores = vec![0f32; q.len() / head_dim * seen];
        let mut row = vec![0f32; head_dim];
        let read = |pages: &[bf16], at: usize, row: &mut [f32]| {
            let from = (slot(blocks, first + at) * self.kv_heads + group) * head_dim;
            widen(&pages[from..from + head_dim], row);
        };
        for at in 0..seen {
            read(self.keys, at, &mut row);
            for (head, q) in q.chunks_exact(head_dim).enumerate() {
                let score = dot(q, &row) * self.scale;
                let capped = |cap: f64| ((f64::from(score) / cap).tanh() * cap) as f32;
                scores[head * seen + at] = self.softcap.map_or(score, capped);
            }
        }
        scores.chunks_exact_mut(seen).for_each(softmax);
        out.fill(0.0);
        for at in 0..seen {
            read(self.values, at, &mut row);
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                add_scaled(out, &row, scores[head * seen + at]);
            }
        }
    }
}

fn pages_of(pages: &Tensor) -> *mut bf16 {
    assert!(pages.kind() == Kind::BFloat16 && pages.is_contiguous());
    pages.data_ptr().cast()
}
