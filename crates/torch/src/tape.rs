//! What a layer makes at great cost, kept from the pass that gives its output for the one that makes its gradient's history:
//! selective activation recomputation (arXiv 2205.05198 §5). The tape itself is the shim's (`shim/tape.h`).

use std::ffi::c_void;
use std::ptr;

use crate::{Error, Result, ffi};

/// Outputs of products and of attention, in the order in which they were made. What is taken is no longer on it.
///
/// [`crate::project`], [`crate::attend`], [`crate::lora_on`], [`crate::device::device_project`] and
/// [`crate::device::attend_texts`] go by it; nothing else does.
#[derive(Debug)]
pub struct Tape(*mut c_void);

impl Tape {
    /// # Errors
    /// No memory.
    pub fn new() -> Result<Self> {
        let mut tape = ptr::null_mut();
        // SAFETY: the place is valid for writing; what is put there is ours.
        ffi::check(unsafe { ffi::tailor_tape_new(&mut tape) })?;
        Ok(Self(tape))
    }

    /// Runs `work` and keeps what is made in it.
    ///
    /// # Errors
    /// Another tape is in use on this thread.
    pub fn record<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        self.during(false, work)
    }

    /// Runs `work`, in which what was kept is given again instead of made. Whoever asks there for more than was kept, or for
    /// something else, is given an error.
    ///
    /// # Errors
    /// Another tape is in use on this thread; something that was kept has not been asked for.
    pub fn replay<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        let made = self.during(true, work)?;
        match self.length() {
            0 => Ok(made),
            left => Err(Error::Torch(format!("a layer that ran again has not asked for {left} of what it had kept"))),
        }
    }

    fn during<T>(&mut self, replay: bool, work: impl FnOnce() -> T) -> Result<T> {
        /// Also where `work` panics.
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                // SAFETY: sets this thread's state.
                unsafe { ffi::tailor_tape_leave() }
            }
        }
        // SAFETY: the tape is alive, and nobody else's, until this thread has left it.
        ffi::check(unsafe { ffi::tailor_tape_enter(self.0, replay) })?;
        let _leave = Leave;
        Ok(work())
    }

    /// Tensors that are on it.
    pub fn length(&self) -> usize {
        // SAFETY: the tape is alive.
        unsafe { ffi::tailor_tape_length(self.0) }
    }

    /// Whether this thread records one, or replays one.
    pub fn is_in_use() -> bool {
        // SAFETY: reads this thread's state.
        unsafe { ffi::tailor_tape_in_use() }
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        // SAFETY: freed once; nobody uses it, since whoever does borrows it.
        unsafe { ffi::tailor_tape_free(self.0) }
    }
}
