//! The functions that launch kernels of our own, as the models use them.
//!
//! Each asks for tensors on a device that has kernels ([`has_kernels`]): a GPU that [`crate::gpu::prepare`] made ready,
//! or the host under [`crate::kernels::emulate_on_host`]. What they compute is what the plain operators compute, but for
//! the order of sums and for roundings that are left out.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use tailor_quant::{Float, Quantized, Scales};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, ffi};

/// Weights that one launch dequantises at most.
pub const MAX_GROUP: usize = 4;

/// Whether kernels run for tensors where this one is.
pub fn has_kernels(tensor: &Tensor) -> bool {
    // SAFETY: the handle is alive during the call.
    unsafe { ffi::tailor_has_kernels(ffi::handle(tensor)) != 0 }
}

/// As [`has_kernels`] for tensors on this device.
pub fn has_kernels_on(device: Device) -> bool {
    matches!(device, Device::Cpu | Device::Cuda(_)) && has_kernels(&Tensor::empty([0], (Kind::Uint8, device)))
}

/// A 4-bit weight `[out, in]` on a device. Cloning shares it; a tensor's history keeps it alive.
#[derive(Debug, Clone)]
pub struct DeviceWeight {
    handle: Arc<Shared>,
    out_features: i64,
    in_features: i64,
    resident_bytes: usize,
}

#[derive(Debug)]
struct Shared(*mut c_void);

// SAFETY: the pointer is to a counted, never changing object.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: freed once; histories hold counts of their own.
        unsafe { ffi::tailor_device_weight_free(self.0) }
    }
}

/// The parts of a weight as tensors on one device; see `shim/device.h`.
pub struct DeviceParts {
    /// [ceil(out·in / 2)] u8
    pub packed: Tensor,
    /// [16] f32
    pub values: Tensor,
    pub scales: DeviceScales,
    /// Elements under one scale.
    pub block: usize,
    pub dtype: Float,
}

/// As [`Scales`], in tensors: f32, codes u8.
pub enum DeviceScales {
    Single { absmax: Tensor },
    Nested { codes: Tensor, map: Tensor, absmax: Tensor, block: usize, offset: f32 },
    Affine { width: Tensor, minimum: Tensor },
}

impl DeviceWeight {
    /// Copies a weight to a device.
    ///
    /// # Errors
    /// It is no matrix; no memory.
    pub fn new(weight: &Quantized, device: Device) -> Result<Self> {
        let [out, input] = *weight.shape() else {
            return Err(Error::Torch(format!("a 4-bit weight of shape {:?} is no matrix", weight.shape())));
        };
        let floats = |values: &[f32]| Tensor::f_from_slice(values)?.f_to_device(device);
        let bytes = |values: &[u8]| Tensor::f_from_slice(values)?.f_to_device(device);
        let scales = match weight.scales() {
            Scales::Single(absmax) => DeviceScales::Single { absmax: floats(absmax)? },
            Scales::Nested { codes, map, absmax, blocksize, offset } => DeviceScales::Nested {
                codes: bytes(codes)?,
                map: floats(map.as_slice())?,
                absmax: floats(absmax)?,
                block: *blocksize,
                offset: *offset,
            },
            Scales::Affine { width, minimum } => {
                DeviceScales::Affine { width: floats(width)?, minimum: floats(minimum)? }
            }
        };
        let parts = DeviceParts {
            packed: bytes(weight.packed())?,
            values: floats(weight.values())?,
            scales,
            block: weight.blocksize(),
            dtype: weight.dtype(),
        };
        Self::from_parts(out as i64, input as i64, &parts)
    }

    /// # Errors
    /// A part's length, type or device does not fit.
    pub fn from_parts(out: i64, input: i64, parts: &DeviceParts) -> Result<Self> {
        let mut four_bit = ffi::FourBit {
            packed: ffi::handle(&parts.packed),
            codes: ptr::null(),
            map: ptr::null(),
            absmax: ptr::null(),
            minimum: ptr::null(),
            values: ffi::handle(&parts.values),
            out,
            input,
            block: u32::try_from(parts.block).unwrap_or(0),
            nested_block: 1,
            scales: 0,
            rounding: match parts.dtype {
                Float::F32 => 0,
                Float::Bf16 => 1,
                Float::F16 => 2,
            },
            offset: 0.0,
        };
        let mut held = vec![&parts.packed, &parts.values];
        match &parts.scales {
            DeviceScales::Single { absmax } => {
                four_bit.absmax = ffi::handle(absmax);
                held.push(absmax);
            }
            DeviceScales::Nested { codes, map, absmax, block, offset } => {
                four_bit.scales = 1;
                (four_bit.codes, four_bit.map) = (ffi::handle(codes), ffi::handle(map));
                four_bit.absmax = ffi::handle(absmax);
                four_bit.nested_block = u32::try_from(*block).unwrap_or(0);
                four_bit.offset = *offset;
                held.extend([codes, map, absmax]);
            }
            DeviceScales::Affine { width, minimum } => {
                four_bit.scales = 2;
                (four_bit.absmax, four_bit.minimum) = (ffi::handle(width), ffi::handle(minimum));
                held.extend([width, minimum]);
            }
        }
        let mut handle = ptr::null_mut();
        // SAFETY: all handles are alive during the call; the shim keeps tensors of its own.
        ffi::check(unsafe { ffi::tailor_device_weight(&four_bit, &mut handle) })?;
        let resident_bytes = held.iter().map(|part| part.numel() * part.kind().elt_size_in_bytes()).sum();
        Ok(Self { handle: Arc::new(Shared(handle)), out_features: out, in_features: input, resident_bytes })
    }

    pub fn out_features(&self) -> i64 {
        self.out_features
    }

    pub fn in_features(&self) -> i64 {
        self.in_features
    }

    /// Bytes on the device.
    pub fn resident_bytes(&self) -> usize {
        self.resident_bytes
    }

    /// The whole weight as a new f32 tensor `[out, in]`: for tests, merging and export, not for computing.
    ///
    /// # Errors
    /// No memory.
    pub fn dequantize(&self) -> Result<Tensor> {
        dequantize_group(&[self], Kind::Float)
    }
}

fn handles(weights: &[&DeviceWeight]) -> Vec<*const c_void> {
    weights.iter().map(|weight| weight.handle.0.cast_const()).collect()
}

/// The weights one below the other, [sum of out, in], by one launch. `kind` is f32 or bf16.
///
/// # Errors
/// More than [`MAX_GROUP`], weights that take different inputs, no memory.
pub fn dequantize_group(weights: &[&DeviceWeight], kind: Kind) -> Result<Tensor> {
    let dtype = if kind == Kind::Float { ffi::F32 } else { ffi::BF16 };
    let all = handles(weights);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_device_dequantize(all.as_ptr(), all.len(), dtype, result) })
}

/// `x·[W1; W2; ..]ᵀ`, the weights dequantised by one launch, forward and again backward, and never saved.
///
/// # Shapes
/// `x` [.., in] → [.., out] for each weight.
///
/// # Errors
/// As [`dequantize_group`]; an input of another width.
pub fn device_linear(x: &Tensor, weights: &[&DeviceWeight]) -> Result<Vec<Tensor>> {
    let all = handles(weights);
    // SAFETY: all handles are alive during the call; the history counts the weights.
    let whole =
        ffi::produce(|result| unsafe { ffi::tailor_device_linear(ffi::handle(x), all.as_ptr(), all.len(), result) })?;
    if let [_] = weights {
        return Ok(vec![whole]);
    }
    let outs: Vec<i64> = weights.iter().map(|weight| weight.out_features).collect();
    Ok(whole.f_split_with_sizes(outs.as_slice(), -1)?)
}

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
    ffi::produce(|result| unsafe { ffi::tailor_rms_norm(x, weight, epsilon, one_plus.into(), result) })
}

/// What the gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Silu,
    GeluTanh,
}

/// act(gate)·up, of which only both inputs are kept for the backward pass.
///
/// # Errors
/// Shapes or types that differ, no memory.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Gate) -> Result<Tensor> {
    let [gate, up] = [gate, up].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_gated(gate, up, activation as i32, result) })
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
    ffi::produce(|result| unsafe { ffi::tailor_cross_entropy(logits, ffi::handle(labels), weights, weight, result) })
}

/// One step of AdamW: what counts for all values, or for each.
pub struct AdamStep<'a> {
    /// f32 [n], changed in place.
    pub values: &'a Tensor,
    pub gradient: &'a Tensor,
    pub gradient_scale: f64,
    pub betas: (f64, f64),
    pub epsilon: f64,
    pub factors: AdamFactors<'a>,
}

/// `rate` is the learning rate over the first moment's correction, `correction` the second moment's, `decay` what a value
/// is multiplied with. Tensors are f32 [n].
pub enum AdamFactors<'a> {
    Same { rate: f64, correction: f64, decay: f64 },
    Each { rates: &'a Tensor, corrections: &'a Tensor, decays: &'a Tensor },
}

impl AdamStep<'_> {
    fn raw(&self) -> ffi::Step {
        let mut step = ffi::Step {
            values: ffi::handle(self.values),
            gradient: ffi::handle(self.gradient),
            rates: ptr::null(),
            corrections: ptr::null(),
            decays: ptr::null(),
            gradient_scale: self.gradient_scale,
            beta1: self.betas.0,
            beta2: self.betas.1,
            epsilon: self.epsilon,
            rate: 0.0,
            correction: 1.0,
            decay: 1.0,
        };
        match &self.factors {
            AdamFactors::Same { rate, correction, decay } => {
                (step.rate, step.correction, step.decay) = (*rate, *correction, *decay);
            }
            AdamFactors::Each { rates, corrections, decays } => {
                [step.rates, step.corrections, step.decays] =
                    [rates, corrections, decays].map(|each| ffi::handle(each));
            }
        }
        step
    }
}

/// Moments in f32 [n], changed in place with the values, by one launch.
///
/// # Errors
/// Lengths or types that do not fit.
pub fn adamw(step: &AdamStep<'_>, first: &Tensor, second: &Tensor) -> Result<()> {
    // SAFETY: all handles are alive during the call.
    ffi::check(unsafe { ffi::tailor_adamw(&step.raw(), ffi::handle(first), ffi::handle(second)) })
}

/// A moment in 8 bits: codes u8 [n], scales f32 [ceil(n/256)], map f32 [256] ascending, middles f32 [255].
pub struct Moment8<'a> {
    pub codes: &'a Tensor,
    pub scales: &'a Tensor,
    pub map: &'a Tensor,
    pub middles: &'a Tensor,
}

/// As [`adamw`] with both moments in 8 bits.
///
/// # Errors
/// Lengths or types that do not fit.
pub fn adamw8(step: &AdamStep<'_>, first: &Moment8<'_>, second: &Moment8<'_>) -> Result<()> {
    let raw = |moment: &Moment8<'_>| {
        let [codes, scales, map, middles] = [moment.codes, moment.scales, moment.map, moment.middles].map(ffi::handle);
        ffi::MomentTensors { codes, scales, map, middles }
    };
    // SAFETY: all handles are alive during the call.
    ffi::check(unsafe { ffi::tailor_adamw8(&step.raw(), &raw(first), &raw(second)) })
}
