//! One block of either stack: self-attention, in the decoder attention to the encoder's states, feed-forward; each after a norm
//! and added to what came in (arXiv 1910.10683 §2.1).

use tch::Tensor;

use crate::attention::{Mask, attend, heads};
use crate::cache::Memory;
use crate::chain::Run;
use crate::config::T5Config;
use crate::linear::{Linear, project};
use crate::norm::{NormScale, RmsNorm};
use crate::pass::Pass;
use crate::spans::SpanAttention;
use crate::weights::Builder;
use crate::{Activation, Result};

pub(super) struct Block {
    self_norm: RmsNorm,
    self_attention: Attention,
    pub cross: Option<(RmsNorm, Attention)>,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

/// What a decoder's block sees of the encoder.
pub(super) enum Encoded<'a> {
    /// The block is an encoder's.
    None,
    /// Keys and values [B, H, Se, Dh] with their mask.
    Given(&'a Tensor, &'a Tensor, &'a Tensor),
    Paged(&'a SpanAttention<'a>),
}

pub(super) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    head_dim: i64,
}

pub(super) struct FeedForward {
    /// `wi`, or `wi_0` where gated.
    wi_0: Linear,
    wi_1: Option<Linear>,
    wo: Linear,
    activation: Activation,
}
impl Block {
    pub fn build(config: &T5Config, weights: &mut Builder, path: &str, is_decoder: bool) -> Result<Self> {
        let norm = |weights: &mut Builder, layer: i64| {
            weights.norm(
                &format!("{path}.layer.{layer}.layer_norm"),
                config.d_model,
                config.layer_norm_epsilon,
                NormScale::Weight,
            )
        };
        let self_norm = norm(weights, 0)?;
        let self_attention = Attention::build(config, weights, &format!("{path}.layer.0.SelfAttention"))?;
        let cross = match is_decoder {
            true => Some((
                norm(weights, 1)?,
                Attention::build(config, weights, &format!("{path}.layer.1.EncDecAttention"))?,
            )),
            false => None,
        };
        let last = if is_decoder { 2 } else { 1 };
        let feed_forward_norm = norm(weights, last)?;
        let feed_forward = FeedForward::build(config, weights, &format!("{path}.layer.{last}.DenseReluDense"))?;
        Ok(Self { self_norm, self_attention, cross, feed_forward_norm, feed_forward })
    }

    /// # Shapes
    /// `x` [B, T, D] → [B, T, D]
    pub fn forward(
        &self,
        x: &Tensor,
        mask: &Mask,
        memory: Memory<'_>,
        encoded: Encoded<'_>,
        pass: &Pass<'_>,
    ) -> Tensor {
        self.forward_for(Run::Values, x, mask, memory, encoded, pass)
    }

    pub fn forward_for(
        &self,
        run: Run,
        x: &Tensor,
        mask: &Mask,
        memory: Memory<'_>,
        encoded: Encoded<'_>,
        pass: &Pass<'_>,
    ) -> Tensor {
        let normed = self.self_norm.forward(x, pass);
        let (k, v) = self.self_attention.keys_values(&normed, pass);
        let attended = match memory {
            Memory::None => self.self_attention.forward(&normed, &k, &v, mask, pass),
            Memory::Growing(cache) => {
                let (k, v) = cache.push(&k, &v);
                self.self_attention.forward(&normed, &k, &v, mask, pass)
            }
            Memory::Spans(spans) => {
                spans.store(&k, &v);
                self.self_attention.forward_spans(&normed, Some((&k, &v)), spans, pass)
            }
        };
        let mut x = x + attended;
        if let Some((norm, attention)) = &self.cross {
            let crossed = match encoded {
                Encoded::None => None,
                Encoded::Given(k, v, seen) => {
                    let mask = Mask::Given(seen.shallow_clone());
                    Some(attention.forward(&norm.forward(&x, pass), k, v, &mask, pass))
                }
                Encoded::Paged(spans) => Some(attention.forward_spans(&norm.forward(&x, pass), None, spans, pass)),
            };
            if let Some(crossed) = crossed {
                x = &x + crossed;
            }
        }
        &x + self.feed_forward.forward(run, &self.feed_forward_norm.forward(&x, pass), pass)
    }
}

impl Attention {
    fn build(config: &T5Config, weights: &mut Builder, path: &str) -> Result<Self> {
        let (d, head_dim, factor) = (config.d_model, config.d_kv, config.initializer_factor);
        let inner = config.num_heads * head_dim;
        let mut linear = |name: &str, input: i64, out: i64, variance: i64| {
            weights.linear(&format!("{path}.{name}"), input, out, false, factor * (variance as f64).powf(-0.5))
        };
        Ok(Self {
            // The missing scale of the scores is in q's initial values.
            q: linear("q", d, inner, d * head_dim)?,
            k: linear("k", d, inner, d)?,
            v: linear("v", d, inner, d)?,
            o: linear("o", inner, d, inner)?,
            head_dim,
        })
    }

    /// `x` [B, S, D] → keys and values [B, H, S, Dh]
    pub fn keys_values(&self, x: &Tensor, pass: &Pass<'_>) -> (Tensor, Tensor) {
        let [k, v] = project([&self.k, &self.v], x, pass);
        (heads(&k, self.head_dim), heads(&v, self.head_dim))
    }

    /// # Shapes
    /// `x` [B, T, D], `k` and `v` [B, H, S, Dh] → [B, T, D]
    fn forward(&self, x: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Tensor {
        let q = heads(&self.q.forward(x, pass), self.head_dim); // [B, H, T, Dh]
        self.o.forward(&attend(&q, k, v, mask, 1.0, None), pass)
    }

    /// The same in a flat batch: `x` [N, 1, D], the rows' own keys and values [N, H, 1, Dh] → [N, 1, D]
    fn forward_spans(
        &self,
        x: &Tensor,
        fresh: Option<(&Tensor, &Tensor)>,
        spans: &SpanAttention<'_>,
        pass: &Pass<'_>,
    ) -> Tensor {
        let q = heads(&self.q.forward(x, pass), self.head_dim); // [N, H, 1, Dh]
        self.o.forward(&spans.attend(&q, fresh, 1.0, None), pass)
    }
}

impl FeedForward {
    fn build(config: &T5Config, weights: &mut Builder, path: &str) -> Result<Self> {
        let (d, inner, factor) = (config.d_model, config.d_ff, config.initializer_factor);
        let mut linear = |name: &str, input: i64, out: i64| {
            weights.linear(&format!("{path}.{name}"), input, out, false, factor * (input as f64).powf(-0.5))
        };
        let (wi_0, wi_1) = match config.gated {
            true => (linear("wi_0", d, inner)?, Some(linear("wi_1", d, inner)?)),
            false => (linear("wi", d, inner)?, None),
        };
        Ok(Self { wi_0, wi_1, wo: linear("wo", inner, d)?, activation: config.activation })
    }

    /// # Shapes
    /// `x` [B, T, D] → [B, T, D], by way of [B, T, F]
    fn forward(&self, run: Run, x: &Tensor, pass: &Pass<'_>) -> Tensor {
        let inner = match &self.wi_1 {
            Some(wi_1) => {
                let [gate, up] = project([&self.wi_0, wi_1], x, pass);
                self.activation.gate(&gate, &up)
            }
            None => self.activation.apply(&self.wi_0.forward(x, pass)),
        };
        self.wo.forward_for(run, &inner, pass)
    }
}
