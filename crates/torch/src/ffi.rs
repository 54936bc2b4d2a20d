//! The shim's C functions (see `shim/shim.h`) and the two conversions every call needs.

use std::ffi::{CStr, c_char, c_void};

use half::bf16;
use tch::Tensor;

use crate::{Error, Result};

pub(crate) const F32: i32 = 0;
/// `TailorReduce`.
pub(crate) const SUM: i32 = 0;
pub(crate) const MIN: i32 = 1;
pub(crate) const BF16: i32 = 1;

/// As `shim/shim.h` has it; `packed` or `dense` is null.
#[repr(C)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no kernels"))]
pub(crate) struct Term {
    pub packed: *const c_void,
    pub dense: *const bf16,
    pub x: *const bf16,
    pub stride: i64,
    pub width: i64,
}

#[repr(C)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no kernels"))]
pub(crate) struct Sum {
    pub terms: *const Term,
    pub count: usize,
    pub out: i64,
    pub add: bool,
    pub y: *mut bf16,
}

#[repr(C)]
pub(crate) struct WeightOps {
    pub dequantize: extern "C" fn(*const c_void, *mut c_void, i32, i64, i64) -> i32,
    pub task: extern "C" fn(*const c_void) -> i64,
    pub multiplies: extern "C" fn(*const c_void, bool) -> bool,
    pub multiply: extern "C" fn(*const c_void, *const f32, i64, bool, *mut f32) -> i32,
    pub has_sums: extern "C" fn(*const c_void) -> bool,
    pub sums: extern "C" fn(*const Sum, usize, i64, bool) -> i32,
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

/// As `shim/device.h` has it, and so are the others.
#[repr(C)]
pub(crate) struct Launch {
    pub kernel: *const c_char,
    pub blocks: u32,
    pub threads: u32,
    pub arguments: *const *const c_void,
    pub argument_count: u32,
    pub device: i32,
    pub stream: *mut c_void,
}

pub(crate) type Launcher = extern "C" fn(*const Launch, *mut c_char, usize) -> i32;

/// A and B of one layer on a device; both null where it has none.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct DeviceFactors {
    pub a: *const c_void,
    pub b: *const c_void,
    pub scale: f64,
}

#[repr(C)]
pub(crate) struct FourBit {
    pub packed: *const c_void,
    pub codes: *const c_void,
    pub map: *const c_void,
    pub absmax: *const c_void,
    pub minimum: *const c_void,
    pub values: *const c_void,
    pub out: i64,
    pub input: i64,
    pub block: u32,
    pub nested_block: u32,
    pub scales: u32,
    pub rounding: u32,
    pub offset: f32,
}

#[repr(C)]
pub(crate) struct Step {
    pub values: *const c_void,
    pub gradient: *const c_void,
    pub rates: *const c_void,
    pub corrections: *const c_void,
    pub decays: *const c_void,
    pub gradient_scale: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub rate: f64,
    pub correction: f64,
    pub decay: f64,
}

#[repr(C)]
pub(crate) struct MomentTensors {
    pub codes: *const c_void,
    pub scales: *const c_void,
    pub map: *const c_void,
    pub middles: *const c_void,
}

/// `TailorLowRankTerm` of kernels/params.h: a row's adapter for one layer, with addresses on the device.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LowRankTerm {
    pub a: u64,
    pub b: u64,
    pub rank: u32,
    pub b_stride: u32,
    pub scale: f32,
    pub unused: u32,
}

impl LowRankTerm {
    pub const NONE: Self = Self { a: 0, b: 0, rank: 0, b_stride: 0, scale: 0.0, unused: 0 };

    /// As it lies in memory.
    pub fn bytes(self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        let fields = [self.a.to_ne_bytes().as_slice(), &self.b.to_ne_bytes(), &self.rank.to_ne_bytes()].concat();
        let rest = [self.b_stride.to_ne_bytes(), self.scale.to_ne_bytes(), self.unused.to_ne_bytes()].concat();
        for (to, from) in bytes.iter_mut().zip(fields.iter().chain(&rest)) {
            *to = *from;
        }
        bytes
    }
}

#[repr(C)]
pub(crate) struct StepNumbers {
    pub numbers: *const c_void,
    pub rows: i64,
}

unsafe extern "C" {
    pub(crate) fn tailor_device_is_direct(weight: *const c_void) -> i32;
    pub(crate) fn tailor_step_product(
        x: *const c_void,
        weights: *const *const c_void,
        count: usize,
        add: i32,
        y: *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_step_norm(
        x: *const c_void,
        weight: *const c_void,
        epsilon: f64,
        one_plus: i32,
        y: *mut c_void,
        roots: *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_step_gated(both: *const c_void, activation: i32, y: *mut c_void) -> i32;
    pub(crate) fn tailor_step_turn(
        product: *mut c_void,
        frequencies: *const c_void,
        numbers: *const StepNumbers,
        keys: *mut c_void,
        values: *mut c_void,
        heads: i64,
    ) -> i32;
    pub(crate) fn tailor_step_attend(
        product: *const c_void,
        numbers: *const StepNumbers,
        keys: *const c_void,
        values: *const c_void,
        heads: i64,
        window: i64,
        scale: f64,
        softcap: f64,
        out: *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_step_low_rank(
        x: *const c_void,
        terms: *const c_void,
        first: i64,
        outs: *const i64,
        count: usize,
        most: i64,
        inner: *mut c_void,
        y: *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_set_launcher(cuda: i32, launcher: Option<Launcher>);
    pub(crate) fn tailor_has_kernels(tensor: *const c_void) -> i32;
    pub(crate) fn tailor_device_weight(parts: *const FourBit, weight: *mut *mut c_void) -> i32;
    pub(crate) fn tailor_device_weight_free(weight: *mut c_void);
    pub(crate) fn tailor_device_dequantize(
        weights: *const *const c_void,
        count: usize,
        dtype: i32,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_device_project(
        x: *const c_void,
        weights: *const *const c_void,
        factors: *const DeviceFactors,
        count: usize,
        results: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_device_lora(
        y: *const c_void,
        x: *const c_void,
        a: *const c_void,
        b: *const c_void,
        scale: f64,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_device_rms_norm(
        x: *const c_void,
        weight: *const c_void,
        epsilon: f64,
        one_plus: i32,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_device_gated(
        gate: *const c_void,
        up: *const c_void,
        activation: i32,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_rope(
        x: *const c_void,
        cos: *const c_void,
        sin: *const c_void,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_attend_texts(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        starts: *const c_void,
        longest: i64,
        scale: f64,
        causal: i32,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_device_cross_entropy(
        logits: *mut c_void,
        labels: *const c_void,
        weights: *const c_void,
        weight: f64,
        losses: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_adamw(step: *const Step, first: *const c_void, second: *const c_void) -> i32;
    pub(crate) fn tailor_adamw8(step: *const Step, first: *const MomentTensors, second: *const MomentTensors) -> i32;
    pub(crate) fn tailor_device_bytes(device: i32, now: *mut u64, peak: *mut u64, reserved_peak: *mut u64) -> i32;
    pub(crate) fn tailor_reset_device_peak(device: i32) -> i32;
    pub(crate) fn tailor_offload(x: *const c_void, parked: *mut *mut c_void) -> i32;
    pub(crate) fn tailor_prefetch(parked: *mut c_void) -> i32;
    pub(crate) fn tailor_fetch(parked: *mut c_void, result: *mut *mut c_void) -> i32;
    pub(crate) fn tailor_parked_free(parked: *mut c_void);
    pub(crate) fn tailor_wrap_memory(
        like: *const c_void,
        data: *mut c_void,
        release: extern "C" fn(*mut c_void),
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_want_values(wanted: i32);
    pub(crate) fn tailor_values_wanted() -> i32;
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
        taped: bool,
        result: *mut *mut c_void,
    ) -> i32;
    pub(crate) fn tailor_tape_new(tape: *mut *mut c_void) -> i32;
    pub(crate) fn tailor_tape_free(tape: *mut c_void);
    pub(crate) fn tailor_tape_enter(tape: *mut c_void, replay: bool) -> i32;
    pub(crate) fn tailor_tape_leave();
    pub(crate) fn tailor_tape_in_use() -> bool;
    pub(crate) fn tailor_tape_length(tape: *const c_void) -> usize;
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

/// Writes as much of the message as there is room for, with a zero at its end.
///
/// # Safety
/// `to` is valid for writing `room` bytes.
pub(crate) unsafe fn fill_message(to: *mut c_char, room: usize, message: &str) {
    let length = message.len().min(room.saturating_sub(1));
    if room > 0 {
        // SAFETY: `length` is within the message and, with the zero, within the room.
        unsafe {
            std::ptr::copy_nonoverlapping(message.as_ptr(), to.cast::<u8>(), length);
            to.add(length).write(0);
        }
    }
}
