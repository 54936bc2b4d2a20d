//! What each base is: its shape, its tokenizer, its tasks and how long it is trained.

use anyhow::Result;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::examples::Encoder;
use crate::tasks::{Gap, Mixture};
use crate::tokenizer::{bpe, load, unigram};

/// Everything that decides a base's bytes.
pub struct Recipe {
    /// The folder under `bases/`.
    pub name: &'static str,
    pub seed: u64,
    pub steps: u64,
    /// Examples in a step.
    pub batch: usize,
    pub learning_rate: f64,
    pub gap: Gap,
    pub mixture: Mixture,
    pub encoder: Encoder,
    pub tokenizer_json: String,
    pub tokenizer_config: Value,
    pub generation_config: Value,
    pub config: Value,
}

impl Recipe {
    /// The T5 v1.1-shaped encoder-decoder: gated GELU, an output layer of its own, no scaling of its input.
    ///
    /// # Errors
    /// The tokenizer cannot be built.
    pub fn tiny_t5() -> Result<Self> {
        let tokenizer_json = unigram::json().to_string();
        let tokenizer = load(&tokenizer_json)?;
        let config = json!({
            "architectures": ["T5ForConditionalGeneration"], "model_type": "t5",
            "d_model": 128, "d_kv": 32, "d_ff": 384, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 3,
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
            "feed_forward_proj": "gated-gelu", "is_gated_act": true, "dense_act_fn": "gelu_new", "dropout_rate": 0.0,
            "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0, "is_encoder_decoder": true, "use_cache": true,
            "tie_word_embeddings": false, "vocab_size": padded_vocabulary(&tokenizer),
            "pad_token_id": unigram::PAD, "eos_token_id": unigram::EOS, "decoder_start_token_id": unigram::PAD,
            "torch_dtype": "bfloat16"
        });
        Ok(Self {
            name: "tiny-t5",
            seed: 1,
            steps: 5_000,
            batch: 64,
            learning_rate: 3e-3,
            gap: Gap::Sentinel,
            mixture: Mixture { plain: 0, copy: 20, random_words: 5, edits: 10, restore: 30, dictionary: 10 },
            encoder: Encoder::seq2seq(tokenizer),
            tokenizer_json,
            tokenizer_config: unigram::config(),
            generation_config: json!({
                "decoder_start_token_id": unigram::PAD, "eos_token_id": unigram::EOS, "pad_token_id": unigram::PAD
            }),
            config,
        })
    }

    /// The Llama-shaped decoder: rotary positions, grouped queries, an output layer of its own.
    ///
    /// # Errors
    /// The tokenizer cannot be built.
    pub fn tiny_llama() -> Result<Self> {
        let tokenizer_json = bpe::json()?;
        let tokenizer = load(&tokenizer_json)?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "hidden_act": "silu",
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
            "attention_bias": false, "attention_dropout": 0.0, "mlp_bias": false, "initializer_range": 0.02,
            "tie_word_embeddings": false, "use_cache": true, "vocab_size": padded_vocabulary(&tokenizer),
            "bos_token_id": bpe::BOS, "eos_token_id": bpe::EOS, "pad_token_id": bpe::PAD, "torch_dtype": "bfloat16"
        });
        Ok(Self {
            name: "tiny-llama",
            seed: 2,
            steps: 5_000,
            batch: 64,
            learning_rate: 3e-3,
            gap: Gap::Underscores,
            mixture: Mixture { plain: 10, copy: 15, random_words: 25, edits: 0, restore: 0, dictionary: 10 },
            encoder: Encoder::decoder(tokenizer),
            tokenizer_json,
            tokenizer_config: bpe::config(),
            generation_config: json!({
                "bos_token_id": bpe::BOS, "eos_token_id": bpe::EOS, "pad_token_id": bpe::PAD
            }),
            config,
        })
    }
}

/// The next multiple of 64, the block of the 4-bit code.
fn padded_vocabulary(tokenizer: &Tokenizer) -> usize {
    tokenizer.get_vocab_size(true).next_multiple_of(64)
}
