//! Weights in 4 bits on a device, and the linear layers over them.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use tailor_quant::{Float, Quantized, Scales};
use tch::{Device, Kind, Tensor};

use crate::{Error, Factors, Result, ffi};

/// Weights that one launch dequantises at most.
pub const MAX_GROUP: usize = 4;

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

    /// Whether [`super::step::product`] takes it: a scale for each piece of 64 of a row, and no minimum.
    pub fn is_direct(&self) -> bool {
        // SAFETY: the weight is alive during the call.
        unsafe { ffi::tailor_device_is_direct(self.handle.0) != 0 }
    }

    pub(super) fn raw(&self) -> *const c_void {
        self.handle.0.cast_const()
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

/// `x·Wᵀ + scale·(x·Aᵀ)·Bᵀ` for several layers of one input, in the type of `x`: their weights are dequantised by one launch,
/// forward and again backward, and never saved; one product serves all. The gradients of A and B are summed in f32.
///
/// # Shapes
/// `x` [.., in] → [.., out] for each layer: columns of one tensor.
///
/// # Errors
/// As [`dequantize_group`]; an input of another width; A and B that do not fit.
pub fn device_project(x: &Tensor, layers: &[(&DeviceWeight, Option<Factors<'_>>)]) -> Result<Vec<Tensor>> {
    let weights: Vec<_> = layers.iter().map(|(weight, _)| weight.handle.0.cast_const()).collect();
    let none = ffi::DeviceFactors { a: ptr::null(), b: ptr::null(), scale: 0.0 };
    let raw = |lora: &Factors<'_>| {
        let [a, b] = [lora.a, lora.b].map(ffi::handle);
        ffi::DeviceFactors { a, b, scale: lora.scale }
    };
    let factors: Vec<_> = layers.iter().map(|(_, lora)| lora.as_ref().map_or(none, raw)).collect();
    let mut results = vec![ptr::null_mut(); layers.len()];
    // SAFETY: all handles are alive during the call; the history counts the weights.
    ffi::check(unsafe {
        ffi::tailor_device_project(
            ffi::handle(x),
            weights.as_ptr(),
            factors.as_ptr(),
            layers.len(),
            results.as_mut_ptr(),
        )
    })?;
    // SAFETY: on success the shim has put a new tensor handle in each place, which is ours now.
    Ok(results.into_iter().map(|result| unsafe { Tensor::from_ptr(result.cast()) }).collect())
}
