//! T5 (arXiv 1910.10683), its v1.1 with gated GELU, and mT5 (arXiv 2010.11934).
//!
//! Attention is not scaled. Positions are a learned bias on the scores, by bucketed distance; block 0 of each stack owns
//! it and the later blocks add the same. Cross-attention has none.

mod block;
mod positions;

use tch::{Kind, Tensor};

use self::block::{Block, Encoded};
use self::positions::PositionBias;
use crate::Result;
use crate::attention::{Mask, biased, causal_mask};
use crate::cache::{Cache, Cross, LayerCache, Memory};
use crate::chain::{Chain, Run};
use crate::config::T5Config;
use crate::linear::Linear;
use crate::norm::{NormScale, RmsNorm};
use crate::pages::KvPool;
use crate::pass::Pass;
use crate::prompt::Prompts;
use crate::spans::{GivenRows, Span, SpanAttention, SpanMask};
use crate::weights::{Builder, Dense};

pub(crate) struct T5 {
    encoder: Stack,
    decoder: Stack,
    lm_head: Linear, // tied: over the embedding's values
    output_scale: Option<f64>,
}

struct Stack {
    embed_tokens: Dense, // [V, D], the same for both
    blocks: Vec<Block>,
    final_layer_norm: RmsNorm,
    positions: PositionBias,
}
impl T5 {
    pub fn build(config: &T5Config, weights: &mut Builder) -> Result<Self> {
        let (d, vocab) = (config.d_model, config.vocab_size);
        let shared = weights.normal("shared.weight", &[vocab, d], config.initializer_factor)?;
        let encoder = Stack::build(config, weights, "encoder", &shared)?;
        let decoder = Stack::build(config, weights, "decoder", &shared)?;
        let tied = if weights.is_random() { config.tie_word_embeddings } else { !weights.has("lm_head.weight") };
        // A head of its own starts at D^-0.5 as in Mesh TensorFlow, so that the first logits are of order one.
        let std = config.initializer_factor * (d as f64).powf(-0.5);
        let lm_head = if tied { shared } else { weights.normal("lm_head.weight", &[vocab, d], std)? };
        let lm_head = weights.head("lm_head", lm_head);
        let output_scale = config.scale_decoder_outputs.then(|| (d as f64).powf(-0.5));
        Ok(Self { encoder, decoder, lm_head, output_scale })
    }

    /// [V, D]
    pub fn embedding(&self) -> &Tensor {
        &self.encoder.embed_tokens.tensor
    }

    pub fn decoder_layers(&self) -> usize {
        self.decoder.blocks.len()
    }

    /// # Shapes
    /// `ids` and `mask` [B, Se] → [B, Se, D]
    pub fn encode(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        prompts: Option<&Prompts<'_>>,
        pass: &Pass<'_>,
    ) -> Tensor {
        let mask = self.encoder_mask(ids, mask);
        let mut x = self.embed(ids, prompts, pass);
        for block in &self.encoder.blocks {
            x = block.forward(&x, &mask, Memory::None, Encoded::None, pass);
        }
        self.encoder.final_layer_norm.forward(&x, pass)
    }

    /// The encoder's first hidden states: [B, Se] → [B, Se, D]
    pub fn embed(&self, ids: &Tensor, prompts: Option<&Prompts<'_>>, pass: &Pass<'_>) -> Tensor {
        let x = self.encoder.embed(ids, pass);
        prompts.map_or_else(|| x.shallow_clone(), |prompts| prompts.put_into(&x))
    }

    /// Final hidden states of the decoder, ready for [`T5::head`].
    ///
    /// # Shapes
    /// `ids` and `mask` [B, Se], `decoder_ids` [B, T] → [B, T, D]
    pub fn hidden(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        decoder_ids: &Tensor,
        prompts: Option<&Prompts<'_>>,
        pass: &Pass<'_>,
    ) -> Tensor {
        let states = self.encode(ids, mask, prompts, pass);
        let block = self.decoder_block(decoder_ids, &states, mask, pass);
        let mut x = self.decoder.embed(decoder_ids, pass);
        for i in 0..self.decoder.blocks.len() {
            x = block(i, &x, Run::Values);
        }
        self.finish_decoder(&x, pass)
    }

    /// The encoder's blocks, ready for a backward pass that runs them again.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn encoder_chain<'a>(
        &'a self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        prompts: Option<&Prompts<'_>>,
        pass: &'a Pass<'a>,
    ) -> Result<Chain<'a>> {
        let mask = self.encoder_mask(ids, mask);
        let blocks = &self.encoder.blocks;
        Chain::forward(self.embed(ids, prompts, pass), blocks.len(), pass.keeps, move |i, x, run| {
            blocks[i].forward_for(run, x, &mask, Memory::None, Encoded::None, pass)
        })
    }

    /// From what the encoder's last block gave to its states.
    pub fn finish_encoder(&self, x: &Tensor, pass: &Pass<'_>) -> Tensor {
        self.encoder.final_layer_norm.forward(x, pass)
    }

    /// The decoder's blocks over the encoder's `states`, whose keys and values are made block by block.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn decoder_chain<'a>(
        &'a self,
        ids: &Tensor,
        states: &Tensor,
        states_mask: Option<&Tensor>,
        pass: &'a Pass<'a>,
    ) -> Result<Chain<'a>> {
        let block = self.decoder_block(ids, states, states_mask, pass);
        Chain::forward(self.decoder.embed(ids, pass), self.decoder.blocks.len(), pass.keeps, block)
    }

    /// The decoder's blocks one by one, each making its keys and values of the encoder's `states` itself.
    fn decoder_block<'a>(
        &'a self,
        ids: &Tensor,
        states: &Tensor,
        states_mask: Option<&Tensor>,
        pass: &'a Pass<'a>,
    ) -> impl Fn(usize, &Tensor, Run) -> Tensor + use<'a> {
        let mask = self.decoder_mask(&ids.ones_like(), ids.size()[1]);
        let (batch, tokens, _) = crate::attention::shape3(states);
        let seen = match states_mask {
            Some(mask) => key_mask(mask),
            None => key_mask(&Tensor::ones([batch, tokens], (Kind::Int64, states.device()))),
        };
        let states = states.shallow_clone();
        move |i, x, run| {
            let block = &self.decoder.blocks[i];
            let cross = block.cross.as_ref().map(|(_, attention)| attention.keys_values(&states, pass));
            let encoded = cross.as_ref().map_or(Encoded::None, |(k, v)| Encoded::Given(k, v, &seen));
            block.forward_for(run, x, &mask, Memory::None, encoded, pass)
        }
    }

    /// From what the decoder's last block gave to what the head takes.
    pub fn finish_decoder(&self, x: &Tensor, pass: &Pass<'_>) -> Tensor {
        let x = self.decoder.final_layer_norm.forward(x, pass);
        match self.output_scale {
            Some(scale) => x * scale,
            None => x,
        }
    }

    /// `ids` and `mask` [B, Se] → [B or 1, H, Se, Se]
    fn encoder_mask(&self, ids: &Tensor, mask: Option<&Tensor>) -> Mask {
        let tokens = ids.size()[1];
        let bias = self.encoder.positions.bias(tokens, tokens); // [1, H, Se, Se]
        Mask::Given(match mask {
            Some(mask) => biased(&bias, &key_mask(mask)),
            None => bias,
        })
    }

    /// For the last `new` of the tokens `keys` [B, S] → [B, H, T, S]
    fn decoder_mask(&self, keys: &Tensor, new: i64) -> Mask {
        let bias = self.decoder.positions.bias(new, keys.size()[1]); // [1, H, T, S]
        Mask::Given(biased(&bias, &causal_mask(keys, new, None)))
    }

    /// Keys and values of the encoder's states for each decoder block.
    pub fn cross(&self, states: &Tensor, mask: Option<&Tensor>, pass: &Pass<'_>) -> Cross {
        let (batch, tokens, _) = crate::attention::shape3(states);
        let all = || Tensor::ones([batch, tokens], (Kind::Int64, states.device()));
        let pairs = self.decoder.blocks.iter().filter_map(|block| block.cross.as_ref());
        Cross {
            layers: pairs.map(|(_, attention)| attention.keys_values(states, pass)).collect(),
            mask: mask.map_or_else(all, |mask| mask.to_kind(Kind::Int64)),
        }
    }

    /// As [`T5::hidden`] for the next tokens of a decoding whose cache holds the encoder's side.
    pub fn decode_next(&self, ids: &Tensor, cache: &mut Cache, pass: &Pass<'_>) -> Tensor {
        let keys = cache.extend(&ids.ones_like());
        let Some(cross) = cache.cross.take() else { panic!("a T5 cache holds the encoder's side") };
        let hidden = self.decode_with(ids, &keys, &cross, Some(&mut cache.layers), pass);
        cache.cross = Some(cross);
        hidden
    }

    fn decode_with(
        &self,
        ids: &Tensor,
        keys: &Tensor, // [B, S]
        cross: &Cross,
        mut cache: Option<&mut Vec<LayerCache>>,
        pass: &Pass<'_>,
    ) -> Tensor {
        let mask = self.decoder_mask(keys, ids.size()[1]);
        let cross_mask = key_mask(&cross.mask);
        let mut x = self.decoder.embed(ids, pass); // [B, T, D]
        for (i, block) in self.decoder.blocks.iter().enumerate() {
            let cache = cache.as_mut().and_then(|layers| layers.get_mut(i));
            let (k, v) = &cross.layers[i];
            x = block.forward(&x, &mask, cache.into(), Encoded::Given(k, v, &cross_mask), pass);
        }
        self.finish_decoder(&x, pass)
    }

    /// The encoder over a flat batch; keys and values of its states, as each decoder block takes them, are put at `write`.
    ///
    /// # Shapes
    /// `ids` [N, 1], `write` [N]
    pub fn encode_paged(
        &self,
        ids: &Tensor,
        given: &GivenRows,
        spans: &[Span],
        write: &Tensor,
        pool: &KvPool,
        pass: &Pass<'_>,
    ) {
        let masks = spans.iter().map(|span| {
            let bias = self.encoder.positions.bias(span.count, span.count); // [1, H, t, t]
            SpanMask { first: 0, mask: Mask::Given(bias) }
        });
        let masks: Vec<SpanMask> = masks.collect();
        let attention = SpanAttention { spans, masks: &masks, pages: None, write: None };
        let mut x = given.put_into(self.encoder.embed(ids, pass)); // [N, 1, D]
        for block in &self.encoder.blocks {
            x = block.forward(&x, &Mask::Open, Memory::Spans(&attention), Encoded::None, pass);
        }
        let states = self.finish_encoder(&x, pass);
        let cross = self.decoder.blocks.iter().filter_map(|block| block.cross.as_ref());
        for ((_, attention), (keys, values)) in cross.zip(&pool.layers) {
            let (k, v) = attention.keys_values(&states, pass); // [N, H, 1, Dh]
            SpanAttention { spans, masks: &masks, pages: Some((keys, values)), write: Some(write) }.store(&k, &v);
        }
    }

    /// The decoder over a flat batch of new tokens, whose keys and values are put at `write`; the encoder's side is in
    /// the pages of `cross`.
    ///
    /// # Shapes
    /// `ids` [N, 1], `write` [N] → [N, 1, D]
    pub fn hidden_paged(
        &self,
        ids: &Tensor,
        spans: &[Span],
        cross: &[Span],
        write: &Tensor,
        pool: &KvPool,
        pass: &Pass<'_>,
    ) -> Tensor {
        let masks = spans.iter().map(|span| {
            let bias = self.decoder.positions.bias(span.count, span.keys()); // [1, H, t, S]
            if span.count == 1 {
                return SpanMask { first: 0, mask: Mask::Given(bias) };
            }
            let keys = Tensor::ones([1, span.keys()], (Kind::Int64, ids.device()));
            SpanMask { first: 0, mask: Mask::Given(biased(&bias, &causal_mask(&keys, span.count, None))) }
        });
        let masks: Vec<SpanMask> = masks.collect();
        let open: Vec<SpanMask> = cross.iter().map(|_| SpanMask::open()).collect();
        let mut x = self.decoder.embed(ids, pass);
        for (block, (keys, values)) in self.decoder.blocks.iter().zip(&pool.layers) {
            let pages = Some((keys, values));
            let own = SpanAttention { spans, masks: &masks, pages, write: Some(write) };
            let encoded = SpanAttention { spans: cross, masks: &open, pages, write: None };
            x = block.forward(&x, &Mask::Open, Memory::Spans(&own), Encoded::Paged(&encoded), pass);
        }
        self.finish_decoder(&x, pass)
    }

    /// # Shapes
    /// `hidden` [.., D] → [.., V]
    pub fn head(&self, hidden: &Tensor, pass: &Pass<'_>) -> Tensor {
        self.lm_head.forward(hidden, pass)
    }

    pub fn output(&self) -> &Linear {
        &self.lm_head
    }
}

/// [B, Se] → [B, 1, 1, Se]: every query sees the real keys.
fn key_mask(mask: &Tensor) -> Tensor {
    mask.to_kind(Kind::Bool).unsqueeze(1).unsqueeze(1)
}

impl Stack {
    fn build(config: &T5Config, weights: &mut Builder, name: &str, embedding: &Tensor) -> Result<Self> {
        let is_decoder = name == "decoder";
        let layers = if is_decoder { config.num_decoder_layers } else { config.num_layers };
        let bias = format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let buckets = config.relative_attention_num_buckets;
        let std = config.initializer_factor * (config.d_model as f64).powf(-0.5);
        let build = |i| Block::build(config, weights, &format!("{name}.block.{i}"), is_decoder);
        let blocks = (0..layers).map(build).collect::<Result<_>>()?;
        Ok(Self {
            embed_tokens: weights.at(&format!("{name}.embed_tokens.weight"), embedding),
            blocks,
            final_layer_norm: weights.norm(
                &format!("{name}.final_layer_norm"),
                config.d_model,
                config.layer_norm_epsilon,
                NormScale::Weight,
            )?,
            positions: PositionBias {
                weight: weights.normal(&bias, &[buckets, config.num_heads], std)?,
                bidirectional: !is_decoder,
                buckets,
                max_distance: config.relative_attention_max_distance,
            },
        })
    }

    /// `ids` [B, T] → [B, T, D]
    fn embed(&self, ids: &Tensor, pass: &Pass<'_>) -> Tensor {
        pass.noisy(pass.with(&self.embed_tokens, ids, |ids, own| Tensor::embedding(own, ids, -1, false, false)))
    }
}
