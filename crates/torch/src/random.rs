//! The state of the random generators that dropout draws from: the CPU's, and with a GPU in use the GPU's.

use tch::Tensor;

use crate::{Result, ffi};

/// The state as bytes: put into a checkpoint, it makes a resumed run draw what the stopped one would have.
///
/// # Errors
/// libtorch failed.
pub fn rng_state() -> Result<Vec<u8>> {
    // SAFETY: the call takes no handle.
    let state = ffi::produce(|result| unsafe { ffi::tailor_rng_state(result) })?;
    Ok(Vec::<u8>::try_from(&state)?)
}

/// # Errors
/// The bytes are no generator state.
pub fn set_rng_state(state: &[u8]) -> Result<()> {
    let state = Tensor::f_from_slice(state)?;
    // SAFETY: the handle is alive during the call.
    ffi::check(unsafe { ffi::tailor_set_rng_state(ffi::handle(&state)) })
}
