//! 4-bit codes (NF4, FP4, uniform) on plain slices, exact to the byte, and folders of them in bitsandbytes' layout.
//!
//! * [`quantize`] turns a slice of floats into a [`Quantized`]; [`Quantized::dequantize_f32`] and
//!   [`Quantized::dequantize_bf16`] turn it back. AVX-512, AVX2 or portable code is chosen at run time.
//! * [`Checkpoint`] maps a Hugging Face folder (one safetensors file or shards) and hands out tensors and 4-bit weights
//!   straight from the map.
//! * [`quantize_folder`] writes a folder that bitsandbytes and this crate both load, one tensor in memory at a time.
//!
//! NF4 and double quantisation: QLoRA, arXiv 2305.14314 §3. No tensor library here.

mod bytes;
mod checkpoint;
mod code;
mod compact;
mod dequantize;
mod error;
mod fingerprint;
mod float;
mod folder;
mod mean;
mod product;
mod quantize;
mod quantized;
mod state;
mod values;

pub use bytes::Bytes;
pub use checkpoint::{Checkpoint, TensorRef};
pub use code::{Backend, Code, FP4, NF4, dynamic_map};
pub use compact::CompactBf16;
pub use dequantize::{Instructions, View};
pub use error::{Error, Result};
pub use fingerprint::fingerprint;
pub use float::Float;
pub use folder::{Progress, QuantOptions, QuantReport, quantize_folder};
pub use product::{
    Alone, BLOCK, Inputs, LowRank, Matrix, Product, Screen, Weights, Workers, has_panels, has_tiles, is_fast, products,
    products_with, spread,
};
#[cfg(target_arch = "x86_64")]
pub use product::{Factor, Panels, Rows, Sum, Term};
pub use quantize::{BlockSize, quantize, quantize_bytes, quantize_with_offset};
pub use quantized::{NESTED_BLOCK, Quantized, Scales};
pub use state::{NestedState, QuantState};
