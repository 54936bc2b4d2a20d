//! What tch lacks: the 4-bit linear function, LoRA as one function, backward from a given gradient,
//! the random generator's state, memory statistics, a pool for large CPU tensors.
//!
//! The C++ shim (`shim/`) takes and gives tensor handles; these are its safe wrappers. No C++ exception crosses: each
//! becomes an [`Error`]. The dequantising itself is `tailor-quant`'s, called back from the shim, so there is one
//! implementation of it.

mod autograd;
mod error;
mod ffi;
mod guard;
mod memory;
mod pool;
mod quant_linear;
mod random;
mod surroundings;

pub use autograd::backward;
pub use error::{Error, Result};
pub use guard::guarded;
pub use memory::{Memory, PeakMemory, available_bytes, resident_bytes, total_bytes};
pub use pool::{TensorBytes, drop_pool, tensor_bytes, use_pool};
pub use quant_linear::{QuantWeight, drop_scratch, lora, quant_linear};
pub use random::{rng_state, set_rng_state};
pub use surroundings::Surroundings;
