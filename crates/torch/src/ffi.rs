//! The shim's C functions (see `shim/shim.h`) and the two conversions every call needs.

use std::ffi::{CStr, c_char, c_void};

use tch::Tensor;

use crate::{Error, Result};

pub(crate) const F32: i32 = 0;
/// `TailorReduce`.
pub(crate) const SUM: i32 = 0;
pub(crate) const MIN: i32 = 1;

#[repr(C)]
pub(crate) struct WeightOps {
    pub dequantize: extern "C" fn(*const c_void, *mut c_void, i32) -> i32,
    pub retain: extern "C" fn(*const c_void),
    pub release: extern "C" fn(*const c_void),
}

unsafe extern "C" {
    pub(crate) fn tailor_quant_linear(
        x: *const c_void,
        bias: *const c_void,
        weight: *const c_void,
        ops: *const WeightOps,
        out: i64,
        input: i64,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_lora(
        y: *const c_void,
        x: *const c_void,
        a: *const c_void,
        b: *const c_void,
        scale: f64,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_backward(
        tensors: *const *const c_void,
        gradients: *const *const c_void,
        count: usize,
        keep_graph: bool,
    ) -> i32;
    pub(crate) fn tailor_rng_state(result: *mut *mut c_void) -> i32;
    pub(crate) fn tailor_set_rng_state(state: *const c_void) -> i32;
    pub(crate) fn tailor_drop_scratch();
    pub(crate) fn tailor_use_pool();
    pub(crate) fn tailor_drop_pool();
    pub(crate) fn tailor_pool_bytes(lent: *mut u64, peak: *mut u64);
    pub(crate) fn tailor_meeting_open(
        host: *const c_char,
        port: u16,
        listener: i32,
        timeout_ms: u64,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_meeting_set(meeting: *mut c_void, key: *const c_char, data: *const u8, size: usize) -> i32;
    pub(crate) fn tailor_meeting_has(meeting: *mut c_void, key: *const c_char, result: *mut bool) -> i32;
    pub(crate) fn tailor_meeting_get(meeting: *mut c_void, key: *const c_char, result: *mut *mut c_void) -> i32;
    pub(crate) fn tailor_meeting_close(meeting: *mut c_void);
    pub(crate) fn tailor_group_open(
        meeting: *mut c_void,
        own_address: *const c_char,
        rank: i32,
        world: i32,
        timeout_ms: u64,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_group_all_reduce(group: *mut c_void, values: *mut c_void, op: i32) -> i32;
    pub(crate) fn tailor_group_broadcast(group: *mut c_void, values: *mut c_void, from: i32) -> i32;
    pub(crate) fn tailor_group_barrier(group: *mut c_void) -> i32;
    pub(crate) fn tailor_group_close(group: *mut c_void);
    fn tailor_last_error() -> *const c_char;
}

/// tch's handle: a pointer to an `at::Tensor`.
pub(crate) fn handle(tensor: &Tensor) -> *const c_void {
    tensor.as_ptr().cast()
}

/// `status` of a call as a result.
pub(crate) fn check(status: i32) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim gives a string that lives until this thread's next failing call.
    let message = unsafe { CStr::from_ptr(tailor_last_error()) };
    Err(Error::Torch(message.to_string_lossy().into_owned()))
}

/// Runs a call that gives one new tensor.
pub(crate) fn produce(call: impl FnOnce(*mut *mut c_void) -> i32) -> Result<Tensor> {
    let mut result = std::ptr::null_mut();
    check(call(&mut result))?;
    // SAFETY: on success the shim has put a new tensor handle there, which is ours now.
    Ok(unsafe { Tensor::from_ptr(result.cast()) })
}
