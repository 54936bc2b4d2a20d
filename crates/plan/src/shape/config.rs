//! config.json, as far as sizes are in it. Whatever else a model needs is checked where it is loaded.

use serde_json::{Map, Value};
use tailor_domain::Family;

use super::{Attention, Block, Linear, MAX_LAYERS, Shape, Stream};
use crate::{Error, Result};

/// Sizes above these are no model's; a product of them stays below 2^64.
const MAX_VOCAB: u64 = 4 << 20;
const MAX_SIDE: u64 = 1 << 20;
const MAX_HEADS: u64 = 1024;

struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn size(&self, field: &str, default: Option<u64>, limit: u64) -> Result<u64> {
        let value = match self.get(field) {
            None => default.ok_or_else(|| Error::field(field, "is missing"))?,
            Some(value) => value.as_u64().ok_or_else(|| Error::field(field, format!("{value} is no size")))?,
        };
        if (1..=limit).contains(&value) {
            return Ok(value);
        }
        Err(Error::field(field, format!("{value} is not between 1 and {limit}")))
    }

    fn flag(&self, field: &str, default: bool) -> bool {
        self.get(field).and_then(Value::as_bool).unwrap_or(default)
    }
}

pub(super) fn parse(text: &[u8]) -> Result<Shape> {
    let object: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| Error::Config(format!("not a JSON object: {error}")))?;
    let fields = Fields(&object);
    let model_type = fields.get("model_type").and_then(Value::as_str).unwrap_or_default();
    match Family::of_model_type(model_type).map_err(|problem| Error::field("model_type", problem))? {
        Family::Decoder => decoder(model_type, &fields),
        Family::EncoderDecoder => encoder_decoder(model_type, &fields),
    }
}

/// Linear layers in the making.
#[derive(Default)]
struct Linears(Vec<Linear>);

impl Linears {
    fn add(&mut self, path: String, input: u64, out: u64) -> usize {
        // transformers keeps T5's `wo` out of 4 bits.
        let coded = !path.ends_with("DenseReluDense.wo");
        self.0.push(Linear { path, input, out, coded });
        self.0.len() - 1
    }
}

fn decoder(model_type: &str, fields: &Fields<'_>) -> Result<Shape> {
    let gemma = model_type.starts_with("gemma");
    let post_norms = matches!(model_type, "gemma2" | "gemma3_text");
    let hidden = fields.size("hidden_size", None, MAX_SIDE)?;
    let vocab = fields.size("vocab_size", None, MAX_VOCAB)?;
    let layers = fields.size("num_hidden_layers", None, MAX_LAYERS)?;
    let heads = fields.size("num_attention_heads", None, MAX_HEADS)?;
    let kv_heads = fields.size("num_key_value_heads", Some(heads), heads)?;
    let default_head_dim = match model_type {
        "qwen3" => 128,
        _ if gemma => 256,
        _ => (hidden / heads).max(1),
    };
    let head_dim = fields.size("head_dim", Some(default_head_dim), 1024)?;
    let inner = fields.size("intermediate_size", None, MAX_SIDE)?;
    let normed = matches!(model_type, "qwen3" | "gemma3_text");
    let capped = model_type == "gemma2" && !fields.0.get("attn_logit_softcapping").is_some_and(Value::is_null);
    let windowed = matches!(model_type, "mistral" | "gemma2" | "gemma3_text");
    let window = match windowed && !fields.0.get("sliding_window").is_some_and(Value::is_null) {
        true => Some(fields.size("sliding_window", Some(4096), 1 << 24)?),
        false => None,
    };
    let bias = fields.flag("attention_bias", false);
    let (qkv_bias, o_bias) = if model_type == "qwen2" { (true, false) } else { (bias, bias) };
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let mut linears = Linears::default();
    let blocks = (0..layers).map(|layer| {
        let mut add = |name: &str, input, out| linears.add(format!("model.layers.{layer}.{name}"), input, out);
        let attention = [
            add("self_attn.q_proj", hidden, q),
            add("self_attn.k_proj", hidden, kv),
            add("self_attn.v_proj", hidden, kv),
            add("self_attn.o_proj", q, hidden),
        ];
        Block {
            stream: Stream::Input,
            attention: Attention { linears: attention, heads, kv_heads, head_dim, normed, capped, window },
            cross: None,
            gate: add("mlp.gate_proj", hidden, inner),
            up: Some(add("mlp.up_proj", hidden, inner)),
            down: add("mlp.down_proj", inner, hidden),
            post_norms,
        }
    });
    let blocks: Vec<Block> = blocks.collect();
    let norms = if post_norms { 4 } else { 2 } * hidden + if normed { 2 * head_dim } else { 0 };
    let biases = if qkv_bias { q + 2 * kv } else { 0 } + if o_bias { hidden } else { 0 };
    let mlp_biases = if fields.flag("mlp_bias", false) { 2 * inner + hidden } else { 0 };
    Ok(Shape {
        model_type: model_type.to_owned(),
        family: Family::Decoder,
        hidden,
        vocab,
        tied: fields.flag("tie_word_embeddings", gemma),
        capped_logits: model_type == "gemma2" && !fields.0.get("final_logit_softcapping").is_some_and(Value::is_null),
        linears: linears.0,
        blocks,
        other_values: layers * (norms + biases + mlp_biases) + hidden,
    })
}

fn encoder_decoder(model_type: &str, fields: &Fields<'_>) -> Result<Shape> {
    let hidden = fields.size("d_model", None, MAX_SIDE)?;
    let vocab = fields.size("vocab_size", None, MAX_VOCAB)?;
    let encoder_layers = fields.size("num_layers", None, MAX_LAYERS)?;
    let decoder_layers = fields.size("num_decoder_layers", Some(encoder_layers), MAX_LAYERS)?;
    let heads = fields.size("num_heads", None, MAX_HEADS)?;
    let head_dim = fields.size("d_kv", None, 4096)?;
    let inner = fields.size("d_ff", None, MAX_SIDE)?;
    let buckets = fields.size("relative_attention_num_buckets", Some(32), 4096)?;
    let gated = fields.get("feed_forward_proj").and_then(Value::as_str).is_some_and(|name| name.starts_with("gated"));
    let width = heads * head_dim;
    let mut linears = Linears::default();
    let attention = |linears: &mut Linears, path: String| Attention {
        linears: [
            linears.add(format!("{path}.q"), hidden, width),
            linears.add(format!("{path}.k"), hidden, width),
            linears.add(format!("{path}.v"), hidden, width),
            linears.add(format!("{path}.o"), width, hidden),
        ],
        heads,
        kv_heads: heads,
        head_dim,
        normed: false,
        capped: false,
        window: None,
    };
    let mut blocks = Vec::new();
    for (stack, layers, stream) in
        [("encoder", encoder_layers, Stream::Input), ("decoder", decoder_layers, Stream::Target)]
    {
        for layer in 0..layers {
            let path = format!("{stack}.block.{layer}.layer");
            let own = attention(&mut linears, format!("{path}.0.SelfAttention"));
            let cross = match stream {
                Stream::Input => None,
                Stream::Target => Some(attention(&mut linears, format!("{path}.1.EncDecAttention"))),
            };
            let last = if cross.is_some() { 2 } else { 1 };
            let mut add =
                |name: &str, input, out| linears.add(format!("{path}.{last}.DenseReluDense.{name}"), input, out);
            let (gate, up) = match gated {
                true => (add("wi_0", hidden, inner), Some(add("wi_1", hidden, inner))),
                false => (add("wi", hidden, inner), None),
            };
            let down = add("wo", inner, hidden);
            blocks.push(Block { stream, attention: own, cross, gate, up, down, post_norms: false });
        }
    }
    let norms = (2 * encoder_layers + 3 * decoder_layers + 2) * hidden;
    Ok(Shape {
        model_type: model_type.to_owned(),
        family: Family::EncoderDecoder,
        hidden,
        vocab,
        tied: own_head_is_missing(fields),
        capped_logits: false,
        linears: linears.0,
        blocks,
        other_values: norms + 2 * buckets * heads,
    })
}

/// Whether a checkpoint of this config has no `lm_head`. Recent transformers writes `tie_word_embeddings: true` for heads of
/// their own too, and then says `scale_decoder_outputs: false`.
fn own_head_is_missing(fields: &Fields<'_>) -> bool {
    fields.flag("tie_word_embeddings", true) && fields.flag("scale_decoder_outputs", true)
}
