//! Backward from a given gradient, and gradient checkpointing.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use tch::Tensor;

use crate::{Result, ffi};

/// Backward from each tensor with its gradient (`None`: one, for a scalar), adding to the leaves' gradients.
///
/// `keep_graph`: the graph can be gone through again.
///
/// # Errors
/// A tensor without history, a gradient of another shape, no memory.
pub fn backward(roots: &[(&Tensor, Option<&Tensor>)], keep_graph: bool) -> Result<()> {
    let tensors: Vec<_> = roots.iter().map(|(tensor, _)| ffi::handle(tensor)).collect();
    let gradients: Vec<_> = roots.iter().map(|(_, gradient)| gradient.map_or(ptr::null(), ffi::handle)).collect();
    // SAFETY: both arrays have `roots.len()` handles, alive during the call.
    ffi::check(unsafe { ffi::tailor_backward(tensors.as_ptr(), gradients.as_ptr(), roots.len(), keep_graph) })
}

type Closure = Box<dyn Fn(&Tensor) -> Tensor + Send>;

static SEGMENT: ffi::Segment = ffi::Segment { run: run_callback, release: release_callback };

extern "C" fn run_callback(closure: *const c_void, x: *const c_void) -> *mut c_void {
    let body = || {
        // SAFETY: `closure` is the box of `checkpoint`, alive until released; `x` is alive during the call.
        let (closure, x) = unsafe { (&*closure.cast::<Closure>(), Tensor::clone_from_ptr(x.cast_mut().cast())) };
        let mut y = closure(&x);
        let handle = y.as_mut_ptr();
        std::mem::forget(y); // handed over to the shim
        handle.cast()
    };
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(ptr::null_mut())
}

extern "C" fn release_callback(closure: *const c_void) {
    // SAFETY: made by `Box::into_raw` in `checkpoint`, released once.
    drop(unsafe { Box::from_raw(closure.cast_mut().cast::<Closure>()) });
}

/// `segment(x)`, keeping only `x`: backward computes the segment again, with the same random numbers.
///
/// `x` must require a gradient, or the segment's own parameters get none.
///
/// # Errors
/// The segment panicked or libtorch failed.
pub fn checkpoint(x: &Tensor, segment: impl Fn(&Tensor) -> Tensor + Send + 'static) -> Result<Tensor> {
    let closure: *mut Closure = Box::into_raw(Box::new(Box::new(segment)));
    // SAFETY: the shim takes the closure over and releases it whatever happens.
    ffi::produce(|result| unsafe { ffi::tailor_checkpoint(ffi::handle(x), closure.cast(), &SEGMENT, result) })
}
