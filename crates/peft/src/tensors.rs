//! The tensors of an adapter, sorted by what they do. Names and files are [`crate::weights`]' business.

use std::collections::BTreeMap;

use safetensors::Dtype;

/// The low-rank update B·A of one linear layer.
///
/// # Shapes
/// `a`: (R, in), `b`: (out, R), both row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPair {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub rank: usize,
    pub in_features: usize,
    pub out_features: usize,
}

impl LoraPair {
    /// Whether B·A is anything but zero.
    pub(crate) fn has_effect(&self) -> bool {
        self.a.iter().any(|value| *value != 0.0) && self.b.iter().any(|value| *value != 0.0)
    }
}

/// A tensor that stands in the place of one of the base's: part of PEFT's `modules_to_save`, or a trained bias. It may be
/// as large as an embedding, so it stays in the type and the bytes of the file.
#[derive(Clone, PartialEq)]
pub struct WholeTensor {
    /// F32, F16 or BF16.
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Row-major, little-endian.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for WholeTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WholeTensor").field("dtype", &self.dtype).field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// What prompt tuning learns (arXiv 2104.08691 §2): embeddings that stand before those of the input.
///
/// # Shapes
/// `values`: (rows, D), row-major. PEFT keeps two rows for each virtual token of an encoder-decoder; the first half counts.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptEmbeddings {
    pub rows: usize,
    pub token_dim: usize,
    pub values: Vec<f32>,
}

/// Everything that `adapter_model.safetensors` can hold. Modules and parameters go by the base's paths, e.g.
/// `model.layers.0.self_attn.q_proj` and `lm_head.weight`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tensors {
    pub pairs: BTreeMap<String, LoraPair>,
    /// DoRA's magnitude [out], by module (arXiv 2402.09353 eq. 5).
    pub magnitudes: BTreeMap<String, Vec<f32>>,
    /// The bias of lora_B [out], by module.
    pub lora_biases: BTreeMap<String, Vec<f32>>,
    /// By parameter.
    pub whole: BTreeMap<String, WholeTensor>,
    /// Virtual tokens; an adapter that has them has nothing else.
    pub prompt: Option<PromptEmbeddings>,
    /// What was not in F32 in the file among A, B, magnitudes and biases of B, by the tensor's name there: so that it is
    /// written as it was read.
    pub narrow: BTreeMap<String, Dtype>,
}

impl Tensors {
    /// Bytes of all values, with A, B, magnitudes and the biases of B in f32.
    pub fn size_bytes(&self) -> u64 {
        let pairs = self.pairs.values().map(|pair| pair.a.len() + pair.b.len());
        let vectors = self.magnitudes.values().chain(self.lora_biases.values()).map(Vec::len);
        let prompt = self.prompt.as_ref().map(|prompt| prompt.values.len());
        let whole = self.whole.values().map(|whole| whole.bytes.len() as u64);
        pairs.chain(vectors).chain(prompt).map(|values| 4 * values as u64).sum::<u64>() + whole.sum::<u64>()
    }
}
