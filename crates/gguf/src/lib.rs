//! GGUF files for llama.cpp: a plain Hugging Face folder whole, or a LoRA adapter alone.
//!
//! What llama.cpp expects was learned from the specification of the format (ggml's docs/gguf.md) and from the public
//! behaviour of llama.cpp's loader and converter. Two rules hold everywhere. What a GGUF file cannot say, so that llama.cpp
//! would compute something else, is refused by name, with a remedy. What llama.cpp does a little differently whatever the
//! file says (how it treats a rare text) is a note in the report.
//!
//! Tensors are read from the mapped folder and written a few rows at a time. The file appears whole or not at all. No tensor
//! library.

mod adapter;
mod config;
mod encode;
mod error;
mod format;
mod keys;
mod model;
mod names;
mod rope;
mod tokenizer;
mod writer;

pub use adapter::{AdapterOptions, AdapterReport, write_adapter};
pub use error::{Error, Result};
pub use format::{Array, Value};
pub use model::{ModelOptions, ModelReport, Progress, check_config, check_texts, write_model};
