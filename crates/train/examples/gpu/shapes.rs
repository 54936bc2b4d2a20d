//! The models that are measured, as their configs say them, and the cases of each.

use serde_json::{Value, json};
use tailor_domain::spec::{Checkpointing, Optimizer};

/// A model by its published sizes.
pub struct Shape {
    pub name: &'static str,
    pub config: Value,
    pub cases: &'static [Case],
}

/// How it is trained.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// Sequences in a step, and tokens in each. An encoder-decoder's input is three quarters of them.
    pub rows: u32,
    pub tokens: u32,
    /// Texts that share a sequence.
    pub packed: u32,
    pub rank: u32,
    pub checkpointing: Checkpointing,
    pub optimizer: Optimizer,
    /// What is wanted of it.
    pub goal: Option<Goal>,
}

#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// Tokens a second on one H200.
    Speed(f64),
    /// Bytes of tensors at most.
    Bytes(f64),
}

const GIB: f64 = (1u64 << 30) as f64;

const PLAIN: Case = Case {
    name: "",
    rows: 1,
    tokens: 4096,
    packed: 4,
    rank: 16,
    checkpointing: Checkpointing::None,
    optimizer: Optimizer::AdamW,
    goal: None,
};

const OF_8B: [Case; 3] = [
    Case { name: "4096 packed, all kept", goal: Some(Goal::Speed(12_500.0)), ..PLAIN },
    Case {
        name: "2 x 2048, products kept",
        rows: 2,
        tokens: 2048,
        packed: 1,
        checkpointing: Checkpointing::Selective,
        ..PLAIN
    },
    Case {
        name: "2 x 2048, layers run again",
        rows: 2,
        tokens: 2048,
        packed: 1,
        checkpointing: Checkpointing::Layers,
        optimizer: Optimizer::AdamW8bit,
        goal: Some(Goal::Bytes(7.4 * GIB)),
        ..PLAIN
    },
];
const OF_7B: [Case; 2] = [
    Case { name: "4096 packed, all kept", ..PLAIN },
    Case {
        name: "2 x 2048, layers run again",
        rows: 2,
        tokens: 2048,
        packed: 1,
        checkpointing: Checkpointing::Layers,
        ..PLAIN
    },
];
const OF_11B: [Case; 1] = [Case {
    name: "4 x 512, layers run again",
    rows: 4,
    tokens: 512,
    packed: 1,
    checkpointing: Checkpointing::Layers,
    ..PLAIN
}];
const OF_70B: [Case; 1] = [Case {
    name: "1 x 2048, inputs on the host",
    tokens: 2048,
    packed: 1,
    checkpointing: Checkpointing::LayersOnHost,
    optimizer: Optimizer::PagedAdamW8bit,
    goal: Some(Goal::Bytes(41e9)),
    ..PLAIN
}];
const OF_TINY: [Case; 3] = [
    Case { name: "64 packed, all kept", tokens: 64, rank: 4, ..PLAIN },
    Case { name: "64 packed, products kept", tokens: 64, rank: 4, checkpointing: Checkpointing::Selective, ..PLAIN },
    Case {
        name: "2 x 32, layers run again",
        rows: 2,
        tokens: 32,
        packed: 1,
        rank: 4,
        checkpointing: Checkpointing::Layers,
        optimizer: Optimizer::AdamW8bit,
        ..PLAIN
    },
];

struct Llama {
    hidden: u32,
    inner: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    vocab: u32,
    theta: f64,
}

impl Llama {
    fn config(&self) -> Value {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": self.theta,
            "initializer_range": 0.02, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
            "torch_dtype": "bfloat16"
        })
    }
}

/// The smallest is for trying the program out, and is no part of a run that names none.
pub fn all() -> Vec<Shape> {
    let llama = |hidden, inner, layers, heads, kv_heads, vocab, theta| {
        Llama { hidden, inner, layers, heads, kv_heads, vocab, theta }.config()
    };
    let t5 = json!({
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "feed_forward_proj": "gated-gelu",
        "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 64,
        "vocab_size": 32128, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0, "tie_word_embeddings": false, "pad_token_id": 0,
        "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0
    });
    vec![
        Shape { name: "llama3-8b", config: llama(4096, 14336, 32, 32, 8, 128_256, 500_000.0), cases: &OF_8B },
        Shape { name: "llama2-7b", config: llama(4096, 11008, 32, 32, 32, 32_000, 10_000.0), cases: &OF_7B },
        Shape { name: "t5-11b", config: t5, cases: &OF_11B },
        Shape { name: "llama2-70b", config: llama(8192, 28672, 80, 64, 8, 32_000, 10_000.0), cases: &OF_70B },
        Shape { name: "tiny", config: llama(64, 128, 2, 4, 2, 300, 10_000.0), cases: &OF_TINY },
    ]
}
