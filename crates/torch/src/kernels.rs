//! Our own kernels: CUDA C++ in `kernels/`, compiled where they run.
//!
//! On a GPU by NVRTC for the very card, cached by card and source ([`nvrtc`], [`cache`]); on a host by its C++ compiler
//! behind an emulation of CUDA's execution model ([`emulate_on_host`]), which is how they are tested without a card. Either
//! way the shim launches them by name, and the functions of [`crate::device`] are the same.

pub mod cache;
mod host;
pub mod nvrtc;
pub mod source;

pub use host::{TEST_VARIABLE, emulate_on_host, test_device};
