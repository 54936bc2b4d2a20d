//! One layer of a decoder: attention with rotary positions and the feed-forward, each between norms and added to what came in.

use tailor_torch::device::{has_kernels, rope};
use tch::Tensor;

use crate::attention::{Mask, attend, heads};
use crate::cache::Memory;
use crate::chain::Run;
use crate::config::DecoderConfig;
use crate::linear::{Linear, project};
use crate::norm::{NormScale, RmsNorm};
use crate::pass::Pass;
use crate::weights::Builder;
use crate::{Activation, Result};

pub(crate) struct Layer {
    pub(crate) kind: usize,
    pub(crate) input_layernorm: RmsNorm,
    pub(crate) self_attn: Attention,
    pub(crate) attention_norm: Option<RmsNorm>, // of what attention gives
    pub(crate) mlp_input_norm: RmsNorm,
    pub(crate) mlp: Mlp,
    pub(crate) mlp_norm: Option<RmsNorm>, // of what the feed-forward gives
}

pub(crate) struct Attention {
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) o_proj: Linear,
    pub(crate) q_norm: Option<RmsNorm>, // over Dh
    pub(crate) k_norm: Option<RmsNorm>,
    pub(crate) head_dim: i64,
    pub(crate) scale: f64,
    pub(crate) softcap: Option<f64>,
}

pub(crate) struct Mlp {
    pub(crate) gate_proj: Linear,
    pub(crate) up_proj: Linear,
    pub(crate) down_proj: Linear,
    pub(crate) activation: Activation,
}

/// Rotary positions of the tokens of one pass.
pub(super) struct Rotation {
    pub cos: Tensor, // [B or 1, 1, T, Dh]
    pub sin: Tensor,
}

/// Where the tokens of one pass stand and what they see, in layers of one kind.
pub(super) struct View {
    pub rotation: Rotation,
    pub mask: Mask,
}

impl Rotation {
    /// RoFormer (arXiv 2104.09864 §3.4.2) in the half-split layout of the checkpoints: pairs are (i, i + Dh/2).
    ///
    /// # Shapes
    /// `x` [B, H, T, Dh] → the same
    fn turn(&self, x: &Tensor) -> Tensor {
        if has_kernels(x) && x.kind() == self.cos.kind() {
            return rope(x, &self.cos, &self.sin).unwrap_or_else(|error| panic!("{error}"));
        }
        if tailor_torch::fused(x) && x.kind() == self.cos.kind() {
            return tailor_torch::rotate(x, &self.cos, &self.sin).unwrap_or_else(|error| panic!("{error}"));
        }
        let halves = x.chunk(2, -1);
        let swapped = Tensor::cat(&[-&halves[1], halves[0].shallow_clone()], -1);
        x * &self.cos + swapped * &self.sin
    }
}

impl Layer {
    pub(super) fn build(config: &DecoderConfig, weights: &mut Builder, i: usize, kind: usize) -> Result<Self> {
        let path = format!("model.layers.{i}");
        let self_attn = Attention::build(config, weights, &format!("{path}.self_attn"))?;
        let mlp = Mlp::build(config, weights, &format!("{path}.mlp"))?;
        let mut norm = |name: &str| {
            weights.norm(&format!("{path}.{name}"), config.hidden_size, config.rms_norm_eps, norm_scale(config))
        };
        let input_layernorm = norm("input_layernorm")?;
        // The same name stands for the norm before the feed-forward and, where there are more, for that after attention.
        let post_attention_layernorm = norm("post_attention_layernorm")?;
        let (attention_norm, mlp_input_norm, mlp_norm) = if config.post_norms {
            let (before, after) = (norm("pre_feedforward_layernorm")?, norm("post_feedforward_layernorm")?);
            (Some(post_attention_layernorm), before, Some(after))
        } else {
            (None, post_attention_layernorm, None)
        };
        Ok(Self { kind, input_layernorm, self_attn, attention_norm, mlp_input_norm, mlp, mlp_norm })
    }

    pub(crate) fn linears(&self) -> [&Linear; 7] {
        let Attention { q_proj, k_proj, v_proj, o_proj, .. } = &self.self_attn;
        let Mlp { gate_proj, up_proj, down_proj, .. } = &self.mlp;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    }

    /// # Shapes
    /// `x` [B, T, D] → [B, T, D]
    pub(super) fn forward(&self, x: &Tensor, view: &View, memory: Memory<'_>, pass: &Pass<'_>) -> Tensor {
        self.forward_for(Run::Values, x, view, memory, pass)
    }

    pub(super) fn forward_for(&self, run: Run, x: &Tensor, view: &View, memory: Memory<'_>, pass: &Pass<'_>) -> Tensor {
        // A norm behind the feed-forward looks at its values.
        let run = if self.mlp_norm.is_some() { Run::Values } else { run };
        let attended = self.self_attn.forward(&self.input_layernorm.forward(x, pass), view, memory, pass);
        let x = x + normed(attended, &self.attention_norm, pass);
        &x + normed(self.mlp.forward(run, &self.mlp_input_norm.forward(&x, pass), pass), &self.mlp_norm, pass)
    }
}

impl Attention {
    fn build(config: &DecoderConfig, weights: &mut Builder, path: &str) -> Result<Self> {
        let (hidden, head_dim, std) = (config.hidden_size, config.head_dim, config.initializer_range);
        let (q_out, kv_out) = (config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim);
        let mut linear = |name: &str, input: i64, out: i64, bias: bool| {
            weights.linear(&format!("{path}.{name}"), input, out, bias, std)
        };
        let q_proj = linear("q_proj", hidden, q_out, config.qkv_bias)?;
        let k_proj = linear("k_proj", hidden, kv_out, config.qkv_bias)?;
        let v_proj = linear("v_proj", hidden, kv_out, config.qkv_bias)?;
        let o_proj = linear("o_proj", q_out, hidden, config.o_bias)?;
        let mut norm = |name: &str| match config.qk_norm {
            true => {
                weights.norm(&format!("{path}.{name}"), head_dim, config.rms_norm_eps, norm_scale(config)).map(Some)
            }
            false => Ok(None),
        };
        let (q_norm, k_norm) = (norm("q_norm")?, norm("k_norm")?);
        let (scale, softcap) = (config.attention_scale, config.attention_softcap);
        Ok(Self { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm, head_dim, scale, softcap })
    }

    /// # Shapes
    /// `x` [B, T, D] → [B, T, D]
    fn forward(&self, x: &Tensor, view: &View, memory: Memory<'_>, pass: &Pass<'_>) -> Tensor {
        let [q, k, v] = project([&self.q_proj, &self.k_proj, &self.v_proj], x, pass);
        let q = normed(heads(&q, self.head_dim), &self.q_norm, pass); // [B, H, T, Dh]
        let k = normed(heads(&k, self.head_dim), &self.k_norm, pass); // [B, K, T, Dh]
        let v = heads(&v, self.head_dim);
        let (q, k) = (view.rotation.turn(&q), view.rotation.turn(&k));
        let attend = |k: &Tensor, v: &Tensor| attend(&q, k, v, &view.mask, self.scale, self.softcap);
        let attended = match memory {
            Memory::None => attend(&k, &v),
            Memory::Growing(cache) => {
                let (k, v) = cache.push(&k, &v); // [B, K, S, Dh]
                attend(&k, &v)
            }
            Memory::Spans(spans) => {
                spans.store(&k, &v);
                spans.attend(&q, Some((&k, &v)), self.scale, self.softcap)
            }
        };
        self.o_proj.forward(&attended, pass)
    }
}

impl Mlp {
    fn build(config: &DecoderConfig, weights: &mut Builder, path: &str) -> Result<Self> {
        let (hidden, inner, std) = (config.hidden_size, config.intermediate_size, config.initializer_range);
        let mut linear = |name: &str, input: i64, out: i64| {
            weights.linear(&format!("{path}.{name}"), input, out, config.mlp_bias, std)
        };
        Ok(Self {
            gate_proj: linear("gate_proj", hidden, inner)?,
            up_proj: linear("up_proj", hidden, inner)?,
            down_proj: linear("down_proj", inner, hidden)?,
            activation: config.activation,
        })
    }

    /// # Shapes
    /// `x` [B, T, D] → [B, T, D], by way of [B, T, F]
    fn forward(&self, run: Run, x: &Tensor, pass: &Pass<'_>) -> Tensor {
        let [gate, up] = project([&self.gate_proj, &self.up_proj], x, pass);
        self.down_proj.forward_for(run, &self.activation.gate(&gate, &up), pass)
    }
}

pub(super) fn norm_scale(config: &DecoderConfig) -> NormScale {
    if config.gemma_scaling { NormScale::OnePlusWeight } else { NormScale::Weight }
}

fn normed(x: Tensor, norm: &Option<RmsNorm>, pass: &Pass<'_>) -> Tensor {
    norm.as_ref().map_or_else(|| x.shallow_clone(), |norm| norm.forward(&x, pass))
}
