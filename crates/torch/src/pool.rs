//! Where large CPU tensors live: blocks of their own, used again by tensors of about the same size (`shim/pool.cpp`).

use std::sync::Once;

use crate::ffi;

/// Bytes of large tensors (256 KiB and more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorBytes {
    pub now: u64,
    /// At their highest since the start or the last [`drop_pool`].
    pub peak: u64,
}

/// From here on large CPU tensors of this process come from the pool. Calling it again changes nothing.
pub fn use_pool() {
    static ONCE: Once = Once::new();
    // SAFETY: sets libtorch's allocator; what was allocated before keeps its own way back.
    ONCE.call_once(|| unsafe { ffi::tailor_use_pool() });
}

/// Gives what the pool keeps for later back to the kernel, as a process should when a piece of work is done.
pub fn drop_pool() {
    // SAFETY: only blocks that no tensor holds are freed.
    unsafe { ffi::tailor_drop_pool() }
}

pub fn tensor_bytes() -> TensorBytes {
    let (mut now, mut peak) = (0, 0);
    // SAFETY: both are valid for writing.
    unsafe { ffi::tailor_pool_bytes(&mut now, &mut peak) };
    TensorBytes { now, peak }
}
