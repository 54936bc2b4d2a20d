//! Hugging Face's tensor names as llama.cpp's, and what must be done to the values on the way.

use crate::config::{Architecture, DecoderConfig, SERVE_FOLDER};
use crate::{Error, Result};

/// What a tensor becomes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    pub name: String,
    pub turn: Turn,
}

/// What is done to the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    AsIs,
    /// llama.cpp's llama rotates neighbouring rows of a head, transformers row i and row i + head_dim/2: the rows of each
    /// of the `heads` change places.
    Pairs {
        heads: u32,
    },
    /// Gemma's norms multiply by 1 + w; llama.cpp's by what the file has.
    PlusOne,
}

impl Turn {
    /// The row of the source that comes `row`-th.
    pub fn source_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::AsIs | Self::PlusOne => row,
            Self::Pairs { heads } => {
                let head_dim = rows / heads as usize;
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + (within % 2) * (head_dim / 2) + within / 2
            }
        }
    }
}

/// One linear layer of a block: its name in transformers, in llama.cpp, and who has a bias there.
struct Linear {
    ours: &'static str,
    theirs: &'static str,
    bias: &'static [Architecture],
}

use Architecture::{Gemma, Gemma2, Gemma3, Llama, Qwen2, Qwen3};

const EVERY: &[Architecture] = &[Llama, Qwen2, Qwen3, Gemma, Gemma2, Gemma3];
const LINEARS: [Linear; 7] = [
    Linear { ours: "self_attn.q_proj", theirs: "attn_q", bias: EVERY },
    Linear { ours: "self_attn.k_proj", theirs: "attn_k", bias: EVERY },
    Linear { ours: "self_attn.v_proj", theirs: "attn_v", bias: EVERY },
    Linear { ours: "self_attn.o_proj", theirs: "attn_output", bias: &[Llama] },
    Linear { ours: "mlp.gate_proj", theirs: "ffn_gate", bias: &[Llama] },
    Linear { ours: "mlp.up_proj", theirs: "ffn_up", bias: &[Llama] },
    Linear { ours: "mlp.down_proj", theirs: "ffn_down", bias: &[Llama] },
];

/// A norm of a block, by who has it.
fn norm(architecture: Architecture, ours: &str) -> Option<&'static str> {
    let two_more = matches!(architecture, Gemma2 | Gemma3);
    match ours {
        "input_layernorm" => Some("attn_norm"),
        // Before the feed-forward in most, behind attention in those that have norms there too.
        "post_attention_layernorm" if two_more => Some("post_attention_norm"),
        "post_attention_layernorm" => Some("ffn_norm"),
        "pre_feedforward_layernorm" if two_more => Some("ffn_norm"),
        "post_feedforward_layernorm" if two_more => Some("post_ffw_norm"),
        "self_attn.q_norm" if matches!(architecture, Qwen3 | Gemma3) => Some("attn_q_norm"),
        "self_attn.k_norm" if matches!(architecture, Qwen3 | Gemma3) => Some("attn_k_norm"),
        _ => None,
    }
}

impl DecoderConfig {
    /// Where the tensor goes; `None` for the head of a model whose head is its embedding.
    ///
    /// # Errors
    /// llama.cpp's architecture has no such tensor.
    pub fn place(&self, name: &str) -> Result<Option<Place>> {
        let norm_turn = if self.architecture.is_gemma() { Turn::PlusOne } else { Turn::AsIs };
        let whole = |name: &str, turn| Ok(Some(Place { name: name.to_owned(), turn }));
        match name {
            "model.embed_tokens.weight" => return whole("token_embd.weight", Turn::AsIs),
            "model.norm.weight" => return whole("output_norm.weight", norm_turn),
            "lm_head.weight" if self.tied => return Ok(None),
            "lm_head.weight" if self.architecture.has_head() => return whole("output.weight", Turn::AsIs),
            _ => {}
        }
        let in_block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        if let Some((layer, rest)) = in_block
            && layer.parse::<u32>().is_ok_and(|number| number < self.layers && number.to_string() == layer)
            && let Some((theirs, turn)) = self.in_block(rest, norm_turn)
        {
            return whole(&format!("blk.{layer}.{theirs}"), turn);
        }
        let problem = format!("llama.cpp's {} of {} layers has no such tensor", self.architecture.name(), self.layers);
        Err(Error::not_mapped(name, problem, SERVE_FOLDER))
    }

    fn in_block(&self, name: &str, norm_turn: Turn) -> Option<(String, Turn)> {
        let (module, part) = name.rsplit_once('.')?;
        if let Some(linear) = LINEARS.iter().find(|linear| linear.ours == module) {
            let known = part == "weight" || part == "bias" && linear.bias.contains(&self.architecture);
            return known.then(|| (format!("{}.{part}", linear.theirs), self.turn_of(linear.ours)));
        }
        let theirs = norm(self.architecture, module).filter(|_| part == "weight")?;
        Some((format!("{theirs}.weight"), norm_turn))
    }

    fn turn_of(&self, linear: &str) -> Turn {
        match (self.architecture, linear) {
            (Llama, "self_attn.q_proj") => Turn::Pairs { heads: self.heads },
            (Llama, "self_attn.k_proj") => Turn::Pairs { heads: self.kv_heads },
            _ => Turn::AsIs,
        }
    }

    /// Inputs and outputs of a linear layer at `path`; `None` for what is none.
    pub fn linear_shape(&self, path: &str) -> Option<(usize, usize)> {
        let (hidden, feed_forward) = (self.hidden as usize, self.feed_forward as usize);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        if path == "lm_head" {
            return Some((hidden, self.vocab_size as usize));
        }
        let (_, module) = path.strip_prefix("model.layers.")?.split_once('.')?;
        match module {
            "self_attn.q_proj" => Some((hidden, queries as usize)),
            "self_attn.k_proj" | "self_attn.v_proj" => Some((hidden, keys as usize)),
            "self_attn.o_proj" => Some((queries as usize, hidden)),
            "mlp.gate_proj" | "mlp.up_proj" => Some((hidden, feed_forward)),
            "mlp.down_proj" => Some((feed_forward, hidden)),
            _ => None,
        }
    }

    /// Every tensor that the model must have, by its name in transformers.
    pub fn required(&self) -> Vec<String> {
        let mut names = vec!["model.embed_tokens.weight".to_owned(), "model.norm.weight".to_owned()];
        if !self.tied {
            names.push("lm_head.weight".into());
        }
        const NORMS: [&str; 6] = [
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
            "self_attn.q_norm",
            "self_attn.k_norm",
        ];
        for layer in 0..self.layers {
            let linears = LINEARS.iter().map(|linear| linear.ours);
            let norms = NORMS.into_iter().filter(|name| norm(self.architecture, name).is_some());
            names.extend(linears.chain(norms).map(|module| format!("model.layers.{layer}.{module}.weight")));
        }
        names
    }
}

#[cfg(test)]
mod tests;
