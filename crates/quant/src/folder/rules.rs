//! Which weights bitsandbytes would put in 4 bits: every linear layer but the head, and T5's `wo`, which transformers
//! keeps in 16 or 32 bit because fp16 overflows there.

use serde_json::{Map, Value};
use tailor_domain::Family;

pub(super) struct Rules {
    model_type: String,
    family: Family,
}

impl Rules {
    /// # Errors
    /// A `model_type` this crate does not know the linear layers of.
    pub(super) fn of(config: &Map<String, Value>) -> Result<Self, String> {
        let Some(model_type) = config.get("model_type").and_then(Value::as_str) else {
            return Err("model_type is missing".into());
        };
        let family = Family::of_model_type(model_type).map_err(|problem| format!("model_type {problem}"))?;
        Ok(Self { model_type: model_type.to_owned(), family })
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    pub(super) fn model_type(&self) -> &str {
        &self.model_type
    }

    /// Whether the tensor called `name` is the weight of a linear layer that is quantised.
    pub(super) fn quantizes(&self, name: &str) -> bool {
        let Some(module) = name.strip_suffix(".weight") else { return false };
        let (parent, leaf) = module.rsplit_once('.').unwrap_or(("", module));
        match self.family {
            Family::Decoder => {
                parent.ends_with(".self_attn") && matches!(leaf, "q_proj" | "k_proj" | "v_proj" | "o_proj")
                    || parent.ends_with(".mlp") && matches!(leaf, "gate_proj" | "up_proj" | "down_proj")
            }
            Family::EncoderDecoder => {
                (parent.ends_with(".SelfAttention") || parent.ends_with(".EncDecAttention"))
                    && matches!(leaf, "q" | "k" | "v" | "o")
                    || parent.ends_with(".DenseReluDense") && matches!(leaf, "wi" | "wi_0" | "wi_1")
            }
        }
    }

    /// Modules that config.json tells transformers to leave as they are.
    pub(super) fn skipped(&self) -> &'static [&'static str] {
        match self.family {
            Family::Decoder => &["lm_head"],
            Family::EncoderDecoder => &["lm_head", "wo"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(model_type: &str) -> Rules {
        let config = serde_json::json!({ "model_type": model_type });
        Rules::of(config.as_object().unwrap()).unwrap()
    }

    #[test]
    fn decoders_keep_head_embeddings_and_norms() {
        let rules = rules("llama");
        for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.11.mlp.down_proj.weight"] {
            assert!(rules.quantizes(name), "{name}");
        }
        for name in [
            "lm_head.weight",
            "model.embed_tokens.weight",
            "model.norm.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_proj.bias",
        ] {
            assert!(!rules.quantizes(name), "{name}");
        }
    }

    #[test]
    fn t5_keeps_wo_and_the_position_bias() {
        let rules = rules("t5");
        for name in [
            "encoder.block.0.layer.0.SelfAttention.q.weight",
            "decoder.block.1.layer.1.EncDecAttention.o.weight",
            "decoder.block.1.layer.2.DenseReluDense.wi_1.weight",
        ] {
            assert!(rules.quantizes(name), "{name}");
        }
        for name in [
            "shared.weight",
            "encoder.block.0.layer.1.DenseReluDense.wo.weight",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ] {
            assert!(!rules.quantizes(name), "{name}");
        }
    }

    #[test]
    fn unknown_model_type_is_refused_with_the_known_ones() {
        let config = serde_json::json!({ "model_type": "mamba" });
        let problem = Rules::of(config.as_object().unwrap()).err().unwrap();
        assert!(problem.contains("\"mamba\"") && problem.contains("llama"), "{problem}");
    }
}
