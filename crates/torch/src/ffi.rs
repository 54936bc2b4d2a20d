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
    pub dequantize: extern "C" fn(*const c_void, *mut c_void, i32, i64, i64) -> i32,
    pub task: extern "C" fn(*const c_void) -> i64,
    pub retain: extern "C" fn(*const c_void),
    pub release: extern "C" fn(*const c_void),
}

/// Null where there is none.
#[repr(C)]
pub(crate) struct Projection {
    pub packed: *const c_void,
    pub dense: *const c_void,
    pub out: i64,
    pub bias: *const c_void,
    pub a: *const c_void,
    pub b: *const c_void,
    pub scale: f64,
}

unsafe extern "C" {
    pub(crate) fn tailor_project(
        x: *const c_void,
        projections: *const Projection,
        count: usize,
        ops: *const WeightOps,
        input: i64,
        results: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_rms_norm(
        x: *const c_void,
        weight: *const c_void,
        eps: f64,
        one_plus: bool,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_rotate(
        x: *const c_void,
        cosine: *const c_void,
        sine: *const c_void,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_gated(gate: *const c_void, up: *const c_void, gelu: bool, result: *mut *mut c_void) -> i32;
    pub(crate) fn tailor_attend(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        mask: *const c_void,
        causal: bool,
        scale: f64,
        grouped: bool,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_cross_entropy(
        states: *const c_void,
        head: *const c_void,
        labels: *const c_void,
        weights: *const c_void,
        weight: f64,
        loss: *mut f64,
        gradient: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_bf16_products() -> bool;
    pub(crate) fn tailor_set_bf16_products(use_them: bool);
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
    pub(crate) fn tailor_parallel(work: extern "C" fn(*mut c_void), data: *mut c_void);
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
