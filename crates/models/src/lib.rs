//! Decoders of the Llama and Gemma kind and the T5 family over 4-bit or dense projections with LoRA.
//!
//! # Using it
//!
//! ```text
//! let base = Base::load(dir, &LoadOptions { compute: Compute::F32, ..Default::default() })?;
//! base.family();  base.config();  base.resident_bytes();
//! base.linears();                                   // every linear layer but the head: path, in, out
//!
//! // LoRA: a set of (A, B, scale, dropout) by module path. Never part of the base: a pass names it.
//! let set = LoraSet::init(&base, &LoraInit { rank: 16, alpha: 32.0, .. }, seed)?;    // for training
//! let set = LoraSet::from_adapter(&base, &adapter)?;     // from a PEFT folder; or `empty` and `insert`
//! set.parameters();                                 // (path + ".lora_A.weight" | ".lora_B.weight", tensor)
//!
//! // Training and scoring: whole sequences. Positions are picked between the two calls.
//! let pass = Pass::training(&set);
//! let hidden = base.hidden(&Input::Decoder { ids, mask }, &pass)?;                    // [B, T, D]
//! let logits = base.head(&hidden.view([-1, d]).index_select(0, &positions), &pass);   // [N, V] f32
//!
//! // Decoding: prompts in, next-token logits out; rows leave with `keep`, others come in with `join`.
//! let routes = Routes::new(&[Some(&set_a), None, Some(&set_b)], base.device());       // an adapter for each row
//! let (logits, mut decoding) = base.start(&prompts, &Pass::rows(&routes))?;           // [B, V]
//! let logits = base.step(&tokens, &mut decoding, &Pass::rows(&routes))?;
//!
//! // Serving: pieces of prompts and single tokens of any number of sequences in one flat batch over a paged cache.
//! let pool = base.kv_pool(blocks)?;
//! let logits = base.advance(&[Segment { tokens, past, blocks, adapter, .. }, ..], &pool)?;    // [M, V]
//! let set = Prepared::for_serving(&base.outline(), &adapter)?.install(&base)?;    // the first half on any thread
//! let answers = base.generate_greedy(&prompts, &Greedy { max_new, eos }, Some(&set))?;
//!
//! // From scratch (pretraining): everything dense, f32, trainable; saved under Hugging Face's names.
//! let base = Base::random(config_json, device, seed)?;  base.parameters();  base.save_folder(dir, kind)?;
//! ```
//!
//! `Tensor` is not `Sync`: one thread owns a base. Plain operators panic when libtorch fails (no memory, an index out of
//! range): run a step behind one guard (`catch_unwind`) on the device thread.
//!
//! # Shapes
//! `B` batch, `T` new tokens, `S` all tokens seen, `D` model, `H` query heads, `K` key/value heads, `Dh` head dimension,
//! `F` feed-forward, `V` vocabulary, `R` rank. Masks are 1 for a real token, 0 for padding.

mod attention;
mod base;
mod cache;
mod chain;
mod change;
mod config;
mod decoder;
mod decoding;
mod device_step;
mod error;
mod fused;
mod greedy;
mod linear;
mod lora;
mod norm;
mod pages;
mod pass;
mod peft;
mod prompt;
mod random;
mod save;
mod spans;
mod t5;
mod texts;
mod weights;

pub use base::{Base, Input, Layered, LoadOptions};
pub use chain::Keeps;
pub use config::{Activation, AttentionKind, Config, DecoderConfig, RopeScaling, T5Config};
pub use decoding::Decoding;
pub use error::{Error, Result};
pub use greedy::{Answering, Greedy};
pub use linear::{Compute, LinearInfo};
pub use lora::{Lora, LoraInit, LoraSet, Outline, Prepared};
pub use pages::{BLOCK_TOKENS, EncoderInput, KvPool, Next, Segment};
pub use pass::{Adapters, Pass, Routes};
pub use texts::Texts;
pub use weights::Parameter;

pub use tailor_torch::gpu::chosen_device;
