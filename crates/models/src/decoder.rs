//! Llama 2 (arXiv 2307.09288), Llama 3 (arXiv 2407.21783) and the decoders that differ from them by data: Mistral,
//! Qwen2, Qwen3, Gemma 1 to 3 (arXiv 2403.08295, 2408.00118, 2503.19786). Pre-norm blocks of grouped-query attention
//! with rotary positions and a gated feed-forward.

mod layer;

use std::f64::consts::TAU;
use std::rc::Rc;

use tailor_quant::{CompactBf16, Screen};
use tailor_torch::device::has_kernels;
use tch::{Kind, Tensor};

pub(crate) use self::layer::{Attention, Layer, Mlp};
use self::layer::{Rotation, View, norm_scale};
use crate::Result;
use crate::attention::{Mask, causal_mask, positions, softcapped};
use crate::cache::{Cache, Memory};
use crate::chain::Chain;
use crate::config::{AttentionKind, DecoderConfig, RopeScaling};
use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::pages::KvPool;
use crate::pass::Pass;
use crate::prompt::Prompts;
use crate::spans::{GivenRows, Span, SpanAttention, SpanMask};
use crate::texts::Texts;
use crate::weights::{Builder, Dense};

pub(crate) struct Decoder {
    embed_tokens: Dense, // [V, D]
    embedding_scale: Option<Tensor>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: RmsNorm,
    pub(crate) lm_head: Linear, // tied: over the embedding's values
    /// The head's weight once more, for steps of serving on a CPU.
    pub(crate) compact_head: Option<CompactBf16>,
    /// What tells where the largest logit is without reading all of the head.
    pub(crate) head_screen: Option<Box<Screen>>,
    pub(crate) logit_softcap: Option<f64>,
    pub(crate) kinds: Vec<LayerKind>,
}

/// What the layers of one kind have in common.
pub(crate) struct LayerKind {
    pub(crate) inverse_frequencies: Tensor, // [Dh/2] f32
    pub(crate) sliding_window: Option<i64>,
}

impl Decoder {
    pub fn build(config: &DecoderConfig, weights: &mut Builder) -> Result<Self> {
        let std = config.initializer_range;
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embedding = weights.normal("model.embed_tokens.weight", &[vocab, hidden], std)?;
        let embed_tokens = weights.at("model.embed_tokens.weight", &embedding);
        let build = |(i, &kind)| Layer::build(config, weights, i, kind);
        let layers = config.layers.iter().enumerate().map(build).collect::<Result<_>>()?;
        let norm = weights.norm("model.norm", hidden, config.rms_norm_eps, norm_scale(config))?;
        let tied = config.tie_word_embeddings;
        let lm_head =
            if tied { embedding.shallow_clone() } else { weights.normal("lm_head.weight", &[vocab, hidden], std)? };
        let lm_head = weights.head("lm_head", lm_head);
        let kinds = config.attention_kinds.iter().map(|kind| LayerKind {
            inverse_frequencies: inverse_frequencies(kind, config.head_dim).to_device(weights.device()),
            sliding_window: kind.sliding_window,
        });
        let kinds = kinds.collect();
        // Rounded to the weights' type first, as the reference does: in bf16 that shows.
        let root = || Tensor::from((hidden as f64).sqrt()).to_kind(embedding.kind()).to_device(weights.device());
        let embedding_scale = config.gemma_scaling.then(root);
        Ok(Self {
            embed_tokens,
            embedding_scale,
            layers,
            norm,
            lm_head,
            compact_head: None,
            head_screen: None,
            logit_softcap: config.logit_softcap,
            kinds,
        })
    }

    /// [V, D]
    pub fn embedding(&self) -> &Tensor {
        &self.embed_tokens.tensor
    }

    /// Every linear layer, the head last.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(Layer::linears).chain([&self.lm_head])
    }

    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Final hidden states after the last norm.
    ///
    /// # Shapes
    /// `ids` [B, T], `mask` [B, T] of the same tokens, as in [`crate::Input::Decoder`] → [B, T, D]
    pub fn hidden(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        prompts: Option<&Prompts<'_>>,
        mut cache: Option<&mut Cache>,
        pass: &Pass<'_>,
    ) -> Tensor {
        let keys = match &mut cache {
            Some(cache) => Some(cache.extend(&mask.map_or_else(|| ids.ones_like(), Tensor::shallow_clone))),
            None => mask.map(Tensor::shallow_clone),
        };
        let texts = self.texts(ids, cache.is_none(), pass);
        let views = self.views(ids, keys.as_ref(), texts);
        let mut x = self.embed(ids, prompts, pass);
        for (i, layer) in self.layers.iter().enumerate() {
            let cache = cache.as_mut().and_then(|cache| cache.layers.get_mut(i));
            x = layer.forward(&x, &views[layer.kind], cache.into(), pass);
        }
        self.finish(&x, pass)
    }

    /// As [`Decoder::hidden`] for a flat batch of new tokens, whose keys and values are put at `write` in the pages.
    ///
    /// # Shapes
    /// `ids` [N, 1], `write` [N] → [N, 1, D]
    pub fn hidden_paged(
        &self,
        ids: &Tensor,
        given: &GivenRows,
        spans: &[Span],
        write: &Tensor,
        pool: &KvPool,
        pass: &Pass<'_>,
    ) -> Tensor {
        let device = ids.device();
        let places: Vec<i64> = spans.iter().flat_map(|span| span.past..span.keys()).collect();
        let places = Tensor::from_slice(&places).to_device(device).unsqueeze(1); // [N, 1]
        let kinds = self.kinds.iter().map(|kind| {
            // What is seen is said span by span.
            let view = View { rotation: self.rotation_at(&kind.inverse_frequencies, &places), mask: Mask::Open };
            let masks = spans.iter().map(|span| SpanMask::causal(span, kind.sliding_window, device));
            (view, masks.collect::<Vec<_>>())
        });
        let kinds: Vec<(View, Vec<SpanMask>)> = kinds.collect();
        let mut x = given.put_into(self.embed(ids, None, pass));
        for (layer, (keys, values)) in self.layers.iter().zip(&pool.layers) {
            let (view, masks) = &kinds[layer.kind];
            let attention = SpanAttention { spans, masks, pages: Some((keys, values)), write: Some(write) };
            x = layer.forward(&x, view, Memory::Spans(&attention), pass);
        }
        self.finish(&x, pass)
    }

    /// The layers as [`Decoder::hidden`] runs them without a cache, ready for a backward pass that runs them again.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn chain<'a>(
        &'a self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        prompts: Option<&Prompts<'_>>,
        pass: &'a Pass<'a>,
    ) -> Result<Chain<'a>> {
        let views = self.views(ids, mask, self.texts(ids, true, pass));
        Chain::forward(self.embed(ids, prompts, pass), self.layers.len(), pass.keeps, move |i, x, run| {
            let layer = &self.layers[i];
            layer.forward_for(run, x, &views[layer.kind], Memory::None, pass)
        })
    }

    /// From what the last layer gave to what the head takes.
    pub fn finish(&self, x: &Tensor, pass: &Pass<'_>) -> Tensor {
        self.norm.forward(x, pass)
    }

    /// [B, T] → [B, T, D]
    pub fn embed(&self, ids: &Tensor, prompts: Option<&Prompts<'_>>, pass: &Pass<'_>) -> Tensor {
        let x = pass.with(&self.embed_tokens, ids, |ids, own| Tensor::embedding(own, ids, -1, false, false));
        let x = pass.noisy(x);
        let x = match &self.embedding_scale {
            Some(scale) => x * scale,
            None => x,
        };
        prompts.map_or_else(|| x.shallow_clone(), |prompts| prompts.put_into(&x))
    }

    fn views(&self, ids: &Tensor, keys: Option<&Tensor>, texts: Option<&Rc<Texts>>) -> Vec<View> {
        self.kinds.iter().map(|kind| self.view(kind, ids, keys, texts)).collect()
    }

    /// The pass's texts, where attention can go by them: virtual tokens or a cache make other sequences of the batch, and
    /// capped scores have no kernel.
    fn texts<'a>(&self, ids: &Tensor, whole: bool, pass: &'a Pass<'_>) -> Option<&'a Rc<Texts>> {
        let capped = self.layers.iter().any(|layer| layer.self_attn.softcap.is_some());
        let usable = whole && !capped && has_kernels(ids);
        pass.texts.as_ref().filter(|texts| usable && texts.tokens() == ids.numel())
    }

    /// # Shapes
    /// `hidden` [.., D] → [.., V]
    pub fn head(&self, hidden: &Tensor, pass: &Pass<'_>) -> Tensor {
        let logits = self.lm_head.forward(hidden, pass);
        self.logit_softcap.map_or_else(|| logits.shallow_clone(), |cap| softcapped(&logits, cap))
    }

    pub fn output(&self) -> &Linear {
        &self.lm_head
    }

    /// Whether logits stay within a cap.
    pub fn is_capped(&self) -> bool {
        self.logit_softcap.is_some()
    }

    fn view(&self, kind: &LayerKind, ids: &Tensor, keys: Option<&Tensor>, texts: Option<&Rc<Texts>>) -> View {
        let new = ids.size()[1];
        if let Some(texts) = texts.filter(|_| kind.sliding_window.is_none_or(|window| new <= window)) {
            let rotation = self.rotation_at(&kind.inverse_frequencies, texts.positions());
            return View { rotation, mask: Mask::Texts(Rc::clone(texts)) };
        }
        let mask = match (keys, kind.sliding_window) {
            (Some(keys), window) => Mask::Given(causal_mask(keys, new, window)),
            (None, Some(window)) if new > window => Mask::Given(causal_mask(&ids.ones_like(), new, Some(window))),
            (None, _) => Mask::Causal,
        };
        View { rotation: self.rotation(&kind.inverse_frequencies, keys, new), mask }
    }

    /// Angles of the last `new` tokens.
    fn rotation(&self, inverse_frequencies: &Tensor, keys: Option<&Tensor>, new: i64) -> Rotation {
        let device = inverse_frequencies.device();
        let positions = match keys {
            None => Tensor::arange(new, (Kind::Int64, device)).unsqueeze(0), // [1, T]
            Some(keys) => positions(keys, new),                              // [B, T]
        };
        self.rotation_at(inverse_frequencies, &positions)
    }

    /// `positions` [B, T]
    fn rotation_at(&self, inverse_frequencies: &Tensor, positions: &Tensor) -> Rotation {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * inverse_frequencies; // [B, T, Dh/2]
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1); // [B, 1, T, Dh]
        let kind = self.embed_tokens.tensor.kind();
        Rotation { cos: angles.cos().to_kind(kind), sin: angles.sin().to_kind(kind) }
    }
}

/// θ^(−2i/Dh), changed as the scaling says (Llama 3.1: by wavelength against the original context).
fn inverse_frequencies(kind: &AttentionKind, head_dim: i64) -> Tensor {
    let exponents = Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, tch::Device::Cpu));
    let plain = (exponents / head_dim as f64 * kind.rope_theta.ln()).exp().reciprocal();
    let scaled = |f: f64| match &kind.rope_scaling {
        None => f,
        Some(RopeScaling::Linear { factor }) => f / factor,
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: context,
        }) => {
            let wavelength = TAU / f;
            if wavelength < context / high {
                f
            } else if wavelength > context / low {
                f / factor
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                (1.0 - smooth) * f / factor + smooth * f
            }
        }
    };
    let values = Vec::<f32>::try_from(&plain).unwrap_or_else(|error| panic!("{error}"));
    Tensor::from_slice(&values.iter().map(|&f| scaled(f as f64) as f32).collect::<Vec<_>>())
}
