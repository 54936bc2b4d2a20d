//! What tch lacks: projections with weights in 4 bits and LoRA, the fused operators between them, backward from a given
//! gradient, what is kept of a layer that runs again, the random generator's state, memory statistics, a pool for large
//! CPU tensors, c10d between the ranks of one job.
//!
//! On a GPU, kernels of our own ([`kernels`]) dequantise and do what is bound by memory; [`device`] has them as functions,
//! and [`gpu`] opens what they need while the program runs.
//!
//! The C++ shim (`shim/`) takes and gives tensor handles; these are its safe wrappers. No C++ exception crosses: each
//! becomes an [`Error`]. The dequantising itself is `tailor-quant`'s, called back from the shim, so there is one
//! implementation of it for the host, and one kernel with the same bits for GPUs.

mod autograd;
mod c10d;
pub mod device;
mod error;
mod ffi;
pub mod gpu;
mod guard;
pub mod kernels;
mod layers;
mod library;
mod memory;
mod pool;
mod quant_linear;
mod random;
mod surroundings;
mod tape;
mod workers;

pub use autograd::backward;
pub use c10d::{Meeting, ProcessGroup};
pub use error::{Error, Result};
pub use guard::guarded;
pub use layers::{
    Gate, LabelWeights, attend, bf16_products, cross_entropy, fused, gated, rms_norm, rotate, set_bf16_products,
};
pub use memory::{Memory, PeakMemory, available_bytes, resident_bytes, total_bytes};
pub use pool::{TensorBytes, drop_pool, tensor_bytes, use_pool};
pub use quant_linear::{
    Factors, Projection, ProjectionWeight, QuantWeight, drop_scratch, lora, lora_on, project, quant_linear,
    without_values,
};
pub use random::{rng_state, set_rng_state};
pub use surroundings::Surroundings;
pub use tape::Tape;
pub use workers::TorchWorkers;
