//! What is taken of a GPU's memory, and tensors that give theirs back while they wait.

use std::ffi::c_void;
use std::ptr;

use tch::{Device, Tensor};

use super::driver;
use crate::{Error, Result, ffi};

/// Bytes of tensors on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceBytes {
    pub now: u64,
    /// At their highest since the start or [`reset_device_peak`].
    pub peak: u64,
    /// The most that libtorch has held of the card, unused pieces included.
    pub reserved_peak: u64,
}

/// # Errors
/// No GPU is open.
pub fn device_bytes(index: usize) -> Result<DeviceBytes> {
    let (mut now, mut peak, mut reserved_peak) = (0, 0, 0);
    // SAFETY: all are valid for writing.
    ffi::check(unsafe { ffi::tailor_device_bytes(index as i32, &mut now, &mut peak, &mut reserved_peak) })?;
    Ok(DeviceBytes { now, peak, reserved_peak })
}

/// # Errors
/// No GPU is open.
pub fn reset_device_peak(index: usize) -> Result<()> {
    // SAFETY: no pointer is given.
    ffi::check(unsafe { ffi::tailor_reset_device_peak(index as i32) })
}

/// A copy on a device. To a GPU it goes by page-locked memory, so that neither the host waits for it nor the GPU's work
/// before it: what the next pass needs is there before that begins.
///
/// # Errors
/// No memory.
pub fn upload(tensor: &Tensor, device: Device) -> Result<Tensor> {
    if !device.is_cuda() {
        return Ok(tensor.f_to_device(device)?);
    }
    Ok(tensor.f_pin_memory(device)?.f_to_device_(device, tensor.kind(), true, false)?)
}

/// A tensor that waits in page-locked host memory. Both copies run beside the GPU's work; [`Parked::fetch`] makes the
/// work that follows wait for what it needs, not the host.
pub struct Parked(*mut c_void);

impl Parked {
    /// Without a GPU it is a plain copy.
    ///
    /// # Errors
    /// No memory.
    pub fn new(tensor: &Tensor) -> Result<Self> {
        let mut parked = ptr::null_mut();
        // SAFETY: the handle is alive during the call.
        ffi::check(unsafe { ffi::tailor_offload(ffi::handle(tensor), &mut parked) })?;
        Ok(Self(parked))
    }

    /// Begins to bring it back.
    ///
    /// # Errors
    /// No memory.
    pub fn prefetch(&mut self) -> Result<()> {
        // SAFETY: ours until dropped.
        ffi::check(unsafe { ffi::tailor_prefetch(self.0) })
    }

    /// # Errors
    /// No memory.
    pub fn fetch(self) -> Result<Tensor> {
        // SAFETY: ours until dropped.
        ffi::produce(|result| unsafe { ffi::tailor_fetch(self.0, result) })
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { ffi::tailor_parked_free(self.0) }
    }
}

/// A tensor of the same shape and type as `like`, on its GPU, whose pages move to the host while others are used.
/// Its values are not set.
///
/// # Errors
/// `like` is on no GPU; no memory.
pub fn managed_like(like: &Tensor) -> Result<Tensor> {
    let Device::Cuda(index) = like.device() else {
        return Err(Error::Gpu("paged memory is for tensors on a GPU".into()));
    };
    let bytes = like.numel() * like.kind().elt_size_in_bytes();
    let data = driver::allocate_managed(index, bytes.max(1)).map_err(Error::Gpu)?;
    // SAFETY: the memory has this many bytes and is freed by the tensor's end.
    let wrapped = ffi::produce(|result| unsafe {
        ffi::tailor_wrap_memory(ffi::handle(like), data, driver::free_managed, result)
    });
    if wrapped.is_err() {
        driver::free_managed(data);
    }
    wrapped
}
