//! y = x·Wᵀ with W in 4 bits (QLoRA, arXiv 2305.14314 eq. 5), and LoRA's h = y + s·B·A·x (arXiv 2106.09685 eq. 3).

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use half::bf16;
use tailor_quant::Quantized;
use tch::Tensor;

use crate::{Result, ffi};

/// A 4-bit weight `[out, in]` that tensors' histories can hold on to. Cloning shares it.
#[derive(Debug, Clone)]
pub struct QuantWeight(Arc<Quantized>);

impl QuantWeight {
    /// `None` where the weight is not a matrix.
    pub fn new(weight: Quantized) -> Option<Self> {
        (weight.shape().len() == 2).then(|| Self(Arc::new(weight)))
    }

    pub fn quantized(&self) -> &Quantized {
        &self.0
    }

    pub fn out_features(&self) -> i64 {
        self.0.shape()[0] as i64
    }

    pub fn in_features(&self) -> i64 {
        self.0.shape()[1] as i64
    }

    pub fn resident_bytes(&self) -> usize {
        self.0.resident_bytes()
    }

    /// The whole weight as a new f32 tensor `[out, in]`: for tests, merging and export, not for computing.
    pub fn dequantize(&self) -> Tensor {
        let mut values = vec![0f32; self.0.elements()];
        self.0.dequantize_f32(&mut values);
        Tensor::from_slice(&values).view([self.out_features(), self.in_features()])
    }
}

/// What the shim calls back. The opaque pointer is an `Arc<Quantized>` turned raw.
static OPS: ffi::WeightOps =
    ffi::WeightOps { dequantize: dequantize_callback, retain: retain_callback, release: release_callback };

extern "C" fn dequantize_callback(weight: *const c_void, data: *mut c_void, dtype: i32) -> i32 {
    let body = || {
        // SAFETY: `weight` is one of our raw `Arc`s, alive while the shim holds it.
        let weight = unsafe { &*weight.cast::<Quantized>() };
        let count = weight.elements();
        if dtype == ffi::F32 {
            // SAFETY: the shim's buffer has out·in elements of this type, and no other reference to it is alive.
            weight.dequantize_f32(unsafe { std::slice::from_raw_parts_mut(data.cast::<f32>(), count) });
        } else {
            // SAFETY: as above.
            weight.dequantize_bf16(unsafe { std::slice::from_raw_parts_mut(data.cast::<bf16>(), count) });
        }
    };
    catch_unwind(AssertUnwindSafe(body)).map_or(1, |()| 0)
}

extern "C" fn retain_callback(weight: *const c_void) {
    // SAFETY: `weight` comes from `Arc::as_ptr` of a live `Arc<Quantized>`.
    unsafe { Arc::increment_strong_count(weight.cast::<Quantized>()) }
}

extern "C" fn release_callback(weight: *const c_void) {
    // SAFETY: pairs with one `retain_callback`.
    unsafe { Arc::decrement_strong_count(weight.cast::<Quantized>()) }
}

/// `x·Wᵀ + bias`, computed in the type of `x` (f32 or bf16).
///
/// W is dequantised into a scratch buffer, forward and again backward; the graph keeps only the packed weight.
///
/// # Shapes
/// `x` [.., in], `bias` [out] → [.., out].
///
/// # Errors
/// Shapes that do not fit, another type, no memory.
pub fn quant_linear(x: &Tensor, weight: &QuantWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let bias = bias.map_or(ptr::null(), ffi::handle);
    let (out, input) = (weight.out_features(), weight.in_features());
    let raw = Arc::as_ptr(&weight.0).cast();
    // SAFETY: all handles are alive during the call; the shim retains the weight before it returns.
    ffi::produce(|result| unsafe { ffi::tailor_quant_linear(ffi::handle(x), bias, raw, &OPS, out, input, result) })
}

/// `y + scale · (x·Aᵀ)·Bᵀ`, computed in the type of A and B and rounded to the type of `y`.
///
/// # Shapes
/// `y` [.., out], `x` [.., in], `a` [R, in], `b` [out, R] → [.., out].
///
/// # Errors
/// Shapes that do not fit, no memory.
pub fn lora(y: &Tensor, x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    if crate::device::has_kernels(x) && x.kind() == y.kind() {
        return crate::device::device_lora(y, x, a, b, scale);
    }
    let [y, x, a, b] = [y, x, a, b].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_lora(y, x, a, b, scale, result) })
}

/// Frees this thread's scratch buffer, which is as large as the largest weight dequantised on it.
pub fn drop_scratch() {
    // SAFETY: no tensor made from the scratch buffer outlives the call that made it.
    unsafe { ffi::tailor_drop_scratch() }
}
