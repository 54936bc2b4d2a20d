//! Hugging Face folders with random weights, of any shape: small ones for tests, large ones for benchmarks of memory.
//!
//! `config.json` and `model.safetensors` only; there is no tokenizer, callers work with ids. The seed decides the weights.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// A Llama-shaped decoder.
#[derive(Debug, Clone)]
pub struct LlamaShape {
    pub hidden: usize,
    pub layers: usize,
    pub feed_forward: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab: usize,
    pub context: usize,
    /// The head is the embedding.
    pub tied: bool,
    pub bf16: bool,
    /// Largest file of weights, as the large models come; `None` writes one file.
    pub shard_bytes: Option<usize>,
}

impl Default for LlamaShape {
    fn default() -> Self {
        Self {
            hidden: 64,
            layers: 2,
            feed_forward: 128,
            heads: 4,
            kv_heads: 2,
            vocab: 96,
            context: 128,
            tied: false,
            bf16: false,
            shard_bytes: None,
        }
    }
}

/// A T5 v1.1-shaped encoder-decoder.
#[derive(Debug, Clone)]
pub struct T5Shape {
    pub hidden: usize,
    pub layers: usize,
    pub feed_forward: usize,
    pub heads: usize,
    pub vocab: usize,
    pub bf16: bool,
}

impl Default for T5Shape {
    fn default() -> Self {
        Self { hidden: 64, layers: 2, feed_forward: 128, heads: 4, vocab: 96, bf16: false }
    }
}

/// The end-of-sequence token of every random base.
pub const EOS: u32 = 1;

impl LlamaShape {
    /// The text of `config.json`.
    pub fn config(&self) -> String {
        format!(
            r#"{{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":{},"num_hidden_layers":{},
"intermediate_size":{},"num_attention_heads":{},"num_key_value_heads":{},"vocab_size":{},"max_position_embeddings":{},
"rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu","attention_bias":false,"mlp_bias":false,
"tie_word_embeddings":{},"bos_token_id":0,"eos_token_id":{EOS},"torch_dtype":"{}"}}"#,
            self.hidden,
            self.layers,
            self.feed_forward,
            self.heads,
            self.kv_heads,
            self.vocab,
            self.context,
            self.tied,
            dtype_name(self.bf16)
        )
    }

    /// Writes the folder's files into `folder`, which exists.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path, seed: u64) -> io::Result<()> {
        std::fs::write(folder.join("config.json"), self.config())?;
        let head = self.hidden / self.heads;
        let mut tensors = vec![Entry::matrix("model.embed_tokens", self.vocab, self.hidden).embedding()];
        for layer in 0..self.layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            tensors.push(Entry::norm(&at("input_layernorm"), self.hidden));
            tensors.push(Entry::norm(&at("post_attention_layernorm"), self.hidden));
            for (name, out, input) in [
                ("self_attn.q_proj", self.hidden, self.hidden),
                ("self_attn.k_proj", self.kv_heads * head, self.hidden),
                ("self_attn.v_proj", self.kv_heads * head, self.hidden),
                ("self_attn.o_proj", self.hidden, self.hidden),
                ("mlp.gate_proj", self.feed_forward, self.hidden),
                ("mlp.up_proj", self.feed_forward, self.hidden),
                ("mlp.down_proj", self.hidden, self.feed_forward),
            ] {
                tensors.push(Entry::matrix(&at(name), out, input));
            }
        }
        tensors.push(Entry::norm("model.norm", self.hidden));
        if !self.tied {
            tensors.push(Entry::matrix("lm_head", self.vocab, self.hidden));
        }
        let Some(shard_bytes) = self.shard_bytes else {
            return write_safetensors(&folder.join("model.safetensors"), &tensors, self.bf16, &mut state(seed));
        };
        write_shards(folder, tensors, self.bf16, seed, shard_bytes)
    }
}

impl T5Shape {
    /// Writes the folder's files into `folder`, which exists.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path, seed: u64) -> io::Result<()> {
        let head = self.hidden / self.heads;
        let config = format!(
            r#"{{"architectures":["T5ForConditionalGeneration"],"model_type":"t5","d_model":{},"d_kv":{head},"d_ff":{},
"num_layers":{},"num_decoder_layers":{},"num_heads":{},"vocab_size":{},"relative_attention_num_buckets":32,
"relative_attention_max_distance":128,"layer_norm_epsilon":1e-6,"feed_forward_proj":"gated-gelu",
"is_encoder_decoder":true,"tie_word_embeddings":false,"decoder_start_token_id":0,"pad_token_id":0,"eos_token_id":{EOS},
"dropout_rate":0.0,"torch_dtype":"{}"}}"#,
            self.hidden,
            self.feed_forward,
            self.layers,
            self.layers,
            self.heads,
            self.vocab,
            dtype_name(self.bf16)
        );
        std::fs::write(folder.join("config.json"), config)?;
        let mut tensors = vec![Entry::matrix("shared", self.vocab, self.hidden).embedding()];
        for stack in ["encoder", "decoder"] {
            for block in 0..self.layers {
                self.push_block(&mut tensors, stack, block);
            }
            tensors.push(Entry::norm(&format!("{stack}.final_layer_norm"), self.hidden));
        }
        tensors.push(Entry::matrix("lm_head", self.vocab, self.hidden));
        write_safetensors(&folder.join("model.safetensors"), &tensors, self.bf16, &mut state(seed))
    }

    fn push_block(&self, tensors: &mut Vec<Entry>, stack: &str, block: usize) {
        let decoder = stack == "decoder";
        let at = |layer: usize, name: &str| format!("{stack}.block.{block}.layer.{layer}.{name}");
        let attentions: &[(usize, &str)] =
            if decoder { &[(0, "SelfAttention"), (1, "EncDecAttention")] } else { &[(0, "SelfAttention")] };
        for (layer, attention) in attentions {
            for name in ["q", "k", "v", "o"] {
                let matrix = Entry::matrix(&at(*layer, &format!("{attention}.{name}")), self.hidden, self.hidden);
                // T5 does not scale its scores by Dh^-0.5; the queries' initialisation does.
                let shrink = if name == "q" { ((self.hidden / self.heads) as f32).powf(-0.5) } else { 1.0 };
                tensors.push(Entry { bound: matrix.bound * shrink, ..matrix });
            }
            tensors.push(Entry::norm(&at(*layer, "layer_norm"), self.hidden));
        }
        if block == 0 {
            tensors.push(Entry::matrix(&at(0, "SelfAttention.relative_attention_bias"), 32, self.heads));
        }
        let last = attentions.len();
        for (name, out, input) in [
            ("wi_0", self.feed_forward, self.hidden),
            ("wi_1", self.feed_forward, self.hidden),
            ("wo", self.hidden, self.feed_forward),
        ] {
            tensors.push(Entry::matrix(&at(last, &format!("DenseReluDense.{name}")), out, input));
        }
        tensors.push(Entry::norm(&at(last, "layer_norm"), self.hidden));
    }
}

fn dtype_name(bf16: bool) -> &'static str {
    if bf16 { "bfloat16" } else { "float32" }
}

/// One tensor: its name, its shape, and how its values are spread.
struct Entry {
    name: String,
    shape: Vec<usize>,
    mean: f32,
    /// Values are uniform within this distance of the mean.
    bound: f32,
}

impl Entry {
    fn matrix(name: &str, out: usize, input: usize) -> Self {
        // Variance 1/in, so that activations keep their size from layer to layer.
        let bound = (3.0 / input as f32).sqrt();
        Self { name: format!("{name}.weight"), shape: vec![out, input], mean: 0.0, bound }
    }

    fn embedding(self) -> Self {
        Self { bound: 1.0, ..self }
    }

    fn norm(name: &str, size: usize) -> Self {
        Self { name: format!("{name}.weight"), shape: vec![size], mean: 1.0, bound: 0.1 }
    }

    fn values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// As transformers shards a folder: files of a number of their own, and the index that says what is where.
fn write_shards(folder: &Path, tensors: Vec<Entry>, bf16: bool, seed: u64, shard_bytes: usize) -> io::Result<()> {
    let width = if bf16 { 2 } else { 4 };
    let mut shards: Vec<Vec<Entry>> = vec![Vec::new()];
    let mut room = shard_bytes;
    for tensor in tensors {
        let size = tensor.values() * width;
        if size > room && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            room = shard_bytes;
        }
        room = room.saturating_sub(size);
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    let mut state = state(seed);
    let mut weight_map = serde_json::Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_safetensors(&folder.join(&name), shard, bf16, &mut state)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), name.clone().into())));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string())
}

fn state(seed: u64) -> u64 {
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

fn write_safetensors(path: &Path, tensors: &[Entry], bf16: bool, state: &mut u64) -> io::Result<()> {
    let (dtype, width) = if bf16 { ("BF16", 2) } else { ("F32", 4) };
    let mut offset = 0;
    let mut header = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    for tensor in tensors {
        let end = offset + tensor.values() * width;
        let shape = &tensor.shape;
        header.push_str(&format!(
            r#","{}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{offset},{end}]}}"#,
            tensor.name
        ));
        offset = end;
    }
    header.push('}');
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for tensor in tensors {
        for _ in 0..tensor.values() {
            let value = tensor.mean + tensor.bound * uniform(state);
            match bf16 {
                true => file.write_all(&nearest_bf16(value).to_le_bytes())?,
                false => file.write_all(&value.to_le_bytes())?,
            }
        }
    }
    file.flush()
}

/// xorshift64*, mapped to −1..1.
fn uniform(state: &mut u64) -> f32 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let bits = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
    bits as f32 / (1u32 << 23) as f32 - 1.0
}

/// Rounds half to even.
fn nearest_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}
