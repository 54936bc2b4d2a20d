//! What tch lacks: projections with weights in 4 bits and LoRA, the fused operators between them, backward from a given
//! gradient, the random generator's state, memory statistics, a pool for large CPU tensors, c10d between the ranks of
//! one job.
//!
//! The C++ shim (`shim/`) takes and gives tensor handles; these are its safe wrappers. No C++ exception crosses: each
//! becomes an [`Error`]. The dequantising itself is `tailor-quant`'s, called back from the shim, so there is one
//! implementation of it.

mod autograd;
mod c10d;
mod error;
mod ffi;
mod guard;
mod layers;
mod memory;
mod pool;
mod quant_linear;
mod random;
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
pub use quant_linear::{Factors, Projection, ProjectionWeight, QuantWeight, drop_scratch, lora, project, quant_linear};
pub use random::{rng_state, set_rng_state};
pub use workers::TorchWorkers;
