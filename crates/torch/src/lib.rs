//! What tch lacks: the 4-bit linear function, LoRA as one function, backward from a given gradient,
//! the random generator's state, memory statistics, a pool for large CPU tensors.
//!
//! On a GPU, kernels of our own ([`kernels`]) dequantise and do what is bound by memory; [`device`] has them as functions,
//! and [`gpu`] opens what they need while the program runs.
//!
//! The C++ shim (`shim/`) takes and gives tensor handles; these are its safe wrappers. No C++ exception crosses: each
//! becomes an [`Error`]. The dequantising itself is `tailor-quant`'s, called back from the shim, so there is one
//! implementation of it for the host, and one kernel with the same bits for GPUs.

mod autograd;
pub mod device;
mod error;
mod ffi;
pub mod gpu;
mod guard;
pub mod kernels;
mod library;
mod memory;
mod pool;
mod quant_linear;
mod random;

pub use autograd::backward;
pub use error::{Error, Result};
pub use guard::guarded;
pub use memory::{Memory, PeakMemory, available_bytes, resident_bytes, total_bytes};
pub use pool::{TensorBytes, drop_pool, tensor_bytes, use_pool};
pub use quant_linear::{QuantWeight, drop_scratch, lora, quant_linear};
pub use random::{rng_state, set_rng_state};
