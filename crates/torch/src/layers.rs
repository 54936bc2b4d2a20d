//! What stands between the products of a layer, each as one function that keeps little for its backward pass.
//!
//! On the CPU these are kernels of the shim (`shim/layers.cpp`, `shim/attention.cpp`, `shim/loss.cpp`) for f32 and bf16.

use std::ptr;

use tch::Tensor;

use crate::{Result, ffi};

/// Whether these functions take tensors of this place and type.
pub fn fused(x: &Tensor) -> bool {
    matches!(x.device(), tch::Device::Cpu) && matches!(x.kind(), tch::Kind::Float | tch::Kind::BFloat16)
}

/// `x/√(mean(x²) + eps)`, rounded to the type of x, times `weight`; or with `one_plus` times 1 + weight before rounding.
/// Root mean square norm, arXiv 1910.07467. The weight gets no gradient.
///
/// # Shapes
/// `x` [.., D], `weight` [D] → [.., D]
///
/// # Errors
/// Shapes or types that do not fit, no memory.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, one_plus: bool) -> Result<Tensor> {
    let (x, weight) = (ffi::handle(x), ffi::handle(weight));
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_rms_norm(x, weight, eps, one_plus, result) })
}

/// Rotary positions (arXiv 2104.09864 §3.4.2) with pairs (i, i + Dh/2): x·cos + (−x₂, x₁)·sin. No gradient for the angles.
///
/// # Shapes
/// `x` [B, H, T, Dh], `cos` and `sin` [B or 1, 1, T, Dh] → [B, H, T, Dh]
///
/// # Errors
/// Shapes or types that do not fit, no memory.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let [x, cos, sin] = [x, cos, sin].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_rotate(x, cos, sin, result) })
}

/// What opens a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// x·σ(x)
    Silu,
    /// GELU (arXiv 1606.08415) by its tanh approximation.
    GeluTanh,
}

/// The product of a gated feed-forward layer (arXiv 2002.05202 §2): `act(gate)·up`.
///
/// # Errors
/// Shapes or types that do not fit, no memory.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Gate) -> Result<Tensor> {
    let [gate, up] = [gate, up].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_gated(gate, up, activation == Gate::GeluTanh, result) })
}

/// `softmax(q·kᵀ·scale + mask)·v` by libtorch's fused kernels: in the type of q, or in f32 where the processor has no bf16
/// product. In bf16 both passes are the shim's own where there are block products (FlashAttention-2, arXiv 2307.08691 §3.1).
///
/// On a CPU q may be in f32 beside keys and values in bf16, which gives an output in f32 that knows no gradient: 16 significant
/// bits of q and of the weights count.
///
/// # Shapes
/// `q` [B, H, T, Dh], `k` and `v` [B, K, S, Dh] with K dividing H; `mask` of booleans or terms, broadcast to
/// [B, H, T, S] → [B, H, T, Dh]
///
/// # Errors
/// Shapes or types that do not fit, no memory.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, causal: bool, scale: f64) -> Result<Tensor> {
    let grouped = q.size()[1] != k.size()[1];
    let [q, k, v] = [q, k, v].map(ffi::handle);
    let mask = mask.map_or(ptr::null(), ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_attend(q, k, v, mask, causal, scale, grouped, result) })
}

/// What each label's cross-entropy counts in a gradient.
#[derive(Debug, Clone, Copy)]
pub enum LabelWeights<'a> {
    Same(f64),
    /// [n] f32
    Each(&'a Tensor),
}

/// The summed cross-entropy in nats of `labels` under the logits `states·headᵀ`, and the gradient at the states of that sum
/// as weighted. Logits become their own gradient where they lie; no history is kept.
///
/// # Shapes
/// `states` [n, D], `head` [V, D], `labels` [n] of integers → gradient [n, D] in the type of the states
///
/// # Errors
/// Shapes or types that do not fit, a label that the head does not have, no memory.
pub fn cross_entropy(
    states: &Tensor,
    head: &Tensor,
    labels: &Tensor,
    weights: LabelWeights<'_>,
) -> Result<(f64, Tensor)> {
    let (weights, weight) = match weights {
        LabelWeights::Same(weight) => (ptr::null(), weight),
        LabelWeights::Each(weights) => (ffi::handle(weights), 0.0),
    };
    let [states, head, labels] = [states, head, labels].map(ffi::handle);
    let mut loss = 0.0;
    // SAFETY: all handles are alive during the call.
    let gradient = ffi::produce(|result| unsafe {
        ffi::tailor_cross_entropy(states, head, labels, weights, weight, &mut loss, result)
    })?;
    Ok((loss, gradient))
}

/// Whether bf16 tensors are multiplied in bf16. By default where the processor has an instruction for it; elsewhere
/// products are made in f32 and rounded, because libtorch's bf16 product is many times slower there.
pub fn bf16_products() -> bool {
    // SAFETY: reads one flag.
    unsafe { ffi::tailor_bf16_products() }
}

/// Chooses for the whole process: for tests and benchmarks.
pub fn set_bf16_products(use_them: bool) {
    // SAFETY: sets one flag.
    unsafe { ffi::tailor_set_bf16_products(use_them) }
}
