//! The PEFT adapter folder (`adapter_config.json`, `adapter_model.safetensors`): read, check, write.
//!
//! What is read here is hostile until checked: sizes are bounded before anything is allocated, pickles are refused,
//! every tensor's name, shape, rank and values are checked, and a setting that Tailor cannot honour is refused by name
//! rather than ignored. What is written here is deterministic and loads in `peft` itself. What an adapter holds is measured,
//! compressed and compared by its singular values. No tensor library.

mod adapter;
mod base;
mod compare;
mod compress;
mod config;
mod error;
mod folder;
mod pattern;
mod spectrum;
mod tensors;
mod weights;

pub use adapter::Adapter;
pub use base::{BaseShapes, LinearShape};
pub use compare::{Comparison, LayerComparison};
pub use compress::{Compressed, Keep};
pub use config::{AdapterConfig, Bias, MAX_VIRTUAL_TOKENS, Modules, PromptTuning, decimal, layer_number};
pub use error::{Error, Result};
pub use folder::{CONFIG_FILE, Limits, PICKLE_FILE, WEIGHTS_FILE};
pub use safetensors::Dtype;
pub use spectrum::{LayerSpectrum, Spectrum};
pub use tensors::{LoraPair, PromptEmbeddings, Tensors, WholeTensor};
