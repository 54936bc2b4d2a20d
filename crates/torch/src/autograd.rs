//! Backward from a given gradient.

use std::ptr;

use tch::Tensor;

use crate::{Result, ffi};

/// Backward from each tensor with its gradient (`None`: one, for a scalar), adding to the leaves' gradients.
///
/// `keep_graph`: the graph can be gone through again.
///
/// # Errors
/// A tensor without history, a gradient of another shape, no memory.
pub fn backward(roots: &[(&Tensor, Option<&Tensor>)], keep_graph: bool) -> Result<()> {
    let tensors: Vec<_> = roots.iter().map(|(tensor, _)| ffi::handle(tensor)).collect();
    let gradients: Vec<_> = roots.iter().map(|(_, gradient)| gradient.map_or(ptr::null(), ffi::handle)).collect();
    // SAFETY: both arrays have `roots.len()` handles, alive during the call.
    ffi::check(unsafe { ffi::tailor_backward(tensors.as_ptr(), gradients.as_ptr(), roots.len(), keep_graph) })
}
