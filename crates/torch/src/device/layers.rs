//! Layers and the loss, each one launch forward and one backward.

use std::ptr;

use tch::Tensor;

use crate::layers::Gate;
use crate::{Result, ffi};

/// As [`crate::lora`] where kernels are.
pub(crate) fn device_lora(y: &Tensor, x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let [y, x, a, b] = [y, x, a, b].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_device_lora(y, x, a, b, scale, result) })
}

/// Root mean square norm; the weight is a constant. `one_plus`: scaled by 1 + w.
///
/// # Shapes
/// `x` [.., D], `weight` [D] → [.., D]
///
/// # Errors
/// Shapes or types that do not fit, no memory.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64, one_plus: bool) -> Result<Tensor> {
    let [x, weight] = [x, weight].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_device_rms_norm(x, weight, epsilon, one_plus.into(), result) })
}

/// act(gate)·up, of which only both inputs are kept for the backward pass.
///
/// # Errors
/// Shapes or types that differ, no memory.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Gate) -> Result<Tensor> {
    let [gate, up] = [gate, up].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe {
        ffi::tailor_device_gated(gate, up, i32::from(activation == Gate::GeluTanh), result)
    })
}

/// Rotary positions, half-split.
///
/// # Shapes
/// `x` [B, H, T, Dh], `cos` and `sin` [B or 1, 1, T, Dh] in the same type → [B, H, T, Dh]
///
/// # Errors
/// Shapes or types that do not fit, no memory.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let [x, cos, sin] = [x, cos, sin].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_rope(x, cos, sin, result) })
}

/// Flash attention over texts one after the other; on a GPU in bf16 only.
///
/// # Shapes
/// `q` [N, H, Dh], `k` and `v` [N, K, Dh], `starts` i32 [texts + 1] from 0 to N, on the same GPU → [N, H, Dh]
///
/// # Errors
/// As libtorch's own function; no memory.
pub fn attend_texts(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    starts: &Tensor,
    longest: i64,
    scale: f64,
    causal: bool,
) -> Result<Tensor> {
    let [q, k, v, starts] = [q, k, v, starts].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_attend_texts(q, k, v, starts, longest, scale, causal.into(), result) })
}

/// Turns logits into the gradient of the weighted cross-entropy, in their own memory. Returns the unweighted losses, [n]
/// f32. Whoever holds the logits' history goes backward from them with themselves as the gradient.
///
/// # Shapes
/// `logits` [n, V] f32 or bf16 without gaps, `labels` [n] i64 (−100: no loss), `weights` [n] f32
///
/// # Errors
/// Shapes or types that do not fit, no memory.
pub fn cross_entropy_in_place(
    logits: &Tensor,
    labels: &Tensor,
    weights: Option<&Tensor>,
    weight: f64,
) -> Result<Tensor> {
    let weights = weights.map_or(ptr::null(), ffi::handle);
    let logits = ffi::handle(logits).cast_mut();
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe {
        ffi::tailor_device_cross_entropy(logits, ffi::handle(labels), weights, weight, result)
    })
}
