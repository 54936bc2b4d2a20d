//! The functions that launch kernels of our own, as the models use them.
//!
//! Each asks for tensors on a device that has kernels ([`has_kernels`]): a GPU that [`crate::gpu::prepare`] made ready,
//! or the host under [`crate::kernels::emulate_on_host`]. What they compute is what the plain operators compute, but for
//! the order of sums and for roundings that are left out.

mod adam;
mod layers;
pub mod step;
mod weight;

use tch::{Device, Kind, Tensor};

use crate::ffi;

pub use adam::{AdamFactors, AdamStep, Moment8, adamw, adamw8};
pub(crate) use layers::device_lora;
pub use layers::{attend_texts, cross_entropy_in_place, gated, rms_norm, rope};
pub use weight::{DeviceParts, DeviceScales, DeviceWeight, MAX_GROUP, dequantize_group, device_project};

/// Whether kernels run for tensors where this one is.
pub fn has_kernels(tensor: &Tensor) -> bool {
    // SAFETY: the handle is alive during the call.
    unsafe { ffi::tailor_has_kernels(ffi::handle(tensor)) != 0 }
}

/// As [`has_kernels`] for tensors on this device.
pub fn has_kernels_on(device: Device) -> bool {
    matches!(device, Device::Cpu | Device::Cuda(_)) && has_kernels(&Tensor::empty([0], (Kind::Uint8, device)))
}
