//! A base model as Tailor keeps it: quantised once, addressed by fingerprint, a Hugging Face folder in blobs.

use serde::{Deserialize, Serialize};

use crate::ids::{AdapterName, BaseName, Digest, Version};

/// How the base's linear weights are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum QuantCode {
    /// NF4 with double quantisation (arXiv 2305.14314 §3): 4.127 bits a parameter.
    Nf4,
    /// NF4 with f32 scales: 4.5 bits a parameter.
    Nf4Single,
    /// The 4-bit float of bitsandbytes.
    Fp4,
    /// 16 equidistant buckets between a block's minimum and maximum.
    Uniform4,
    /// As stored in the source folder.
    None,
}

impl QuantCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Nf4Single => "nf4-single",
            Self::Fp4 => "fp4",
            Self::Uniform4 => "uniform4",
            Self::None => "none",
        }
    }
}

/// The shape of the model's mouth: what goes in, what is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Llama and its relatives: one stream of tokens.
    Decoder,
    /// T5 and its relatives: the input is encoded, the answer decoded.
    EncoderDecoder,
}

impl Family {
    /// The `model_type`s of config.json that are supported.
    pub const MODEL_TYPES: [(&str, Self); 9] = [
        ("llama", Self::Decoder),
        ("mistral", Self::Decoder),
        ("qwen2", Self::Decoder),
        ("qwen3", Self::Decoder),
        ("gemma", Self::Decoder),
        ("gemma2", Self::Decoder),
        ("gemma3_text", Self::Decoder),
        ("t5", Self::EncoderDecoder),
        ("mt5", Self::EncoderDecoder),
    ];

    /// The family of a `model_type`.
    ///
    /// # Errors
    /// What is wrong with one that is not supported, and which are.
    pub fn of_model_type(model_type: &str) -> Result<Self, String> {
        if let Some((_, family)) = Self::MODEL_TYPES.iter().find(|(known, _)| *known == model_type) {
            return Ok(*family);
        }
        if model_type == "gemma3" {
            return Err("\"gemma3\" has a vision tower; its text models, \"gemma3_text\", are supported".into());
        }
        let known = Self::MODEL_TYPES.map(|(known, _)| known).join(", ");
        Err(format!("{model_type:?} is not supported; supported are {known}"))
    }

    /// PEFT's name for the task.
    pub fn task_type(self) -> &'static str {
        match self {
            Self::Decoder => "CAUSAL_LM",
            Self::EncoderDecoder => "SEQ_2_SEQ_LM",
        }
    }
}

/// One file of a folder kept in object storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// A plain file name, no separators.
    pub name: String,
    pub digest: Digest,
    pub size_bytes: u64,
}

/// `bases/<name>/manifest.json`. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseManifest {
    pub name: BaseName,
    /// sha256 over the source's config, tokenizer and sorted tensor name/shape/dtype/digest, and the quantisation code.
    pub fingerprint: Digest,
    pub family: Family,
    /// `model_type` of the config: `t5`, `llama`, …
    pub model_type: String,
    pub quant: QuantCode,
    /// The compute type: `bf16` or `f32`.
    pub dtype: String,
    pub parameters: u64,
    pub files: Vec<FileRef>,
    pub created_at_ms: u64,
    /// Absent for a base that was brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_from: Option<MergedFrom>,
}

/// A version that was put into its base's weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergedFrom {
    pub adapter: AdapterName,
    pub version: Version,
    /// The version's.
    pub digest: Digest,
    pub base: BaseName,
    pub base_fingerprint: Digest,
}

impl BaseManifest {
    pub fn file(&self, name: &str) -> Option<&FileRef> {
        self.files.iter().find(|file| file.name == name)
    }

    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }
}
