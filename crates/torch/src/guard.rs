//! The one guard around a step on the device's thread.
//!
//! tch's plain operators panic when libtorch throws. The panic is caught here, so that a job fails and the process goes
//! on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Error;
use crate::error::essence;

/// Runs `work`; a panic in it becomes [`Error::Torch`] with libtorch's own words.
///
/// # Errors
/// What `work` returns, or the panic.
pub fn guarded<T, E: From<Error>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Error::Torch(message(panic.as_ref())).into()))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.map_or("panic without a message", essence).to_owned()
}

#[cfg(test)]
mod tests {
    use tailor_domain::ErrorCode;
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn an_exception_of_libtorch_becomes_one_line() {
        let left = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let error = guarded::<_, Error>(|| Ok(left.matmul(&left))).expect_err("shapes do not fit");
        assert_eq!(error.code(), ErrorCode::Internal, "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
        assert!(error.to_string().starts_with("libtorch: mat1 and mat2"), "{error}");
    }

    #[test]
    fn memory_that_cannot_be_had_is_told_apart() {
        let error = guarded::<_, Error>(|| Ok(Tensor::zeros([1 << 46], (Kind::Float, Device::Cpu))))
            .expect_err("no machine has it");
        assert_eq!(error.code(), ErrorCode::ResourceExhausted, "{error}");
        assert!(error.to_string().ends_with("(Cannot allocate memory)"), "no backtrace follows: {error}");
    }
}
