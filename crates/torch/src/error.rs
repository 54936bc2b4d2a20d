//! Failures of libtorch, as values.

use tailor_domain::ErrorCode;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("libtorch: {0}")]
    Torch(String),
    #[error("memory statistics: {0}")]
    Memory(String),
    /// Another rank of the job is gone, silent or cannot be reached; the job can be taken up again from its checkpoint.
    #[error("ranks: {0}; another rank of this job has ended or cannot be reached")]
    Ranks(String),
    /// What a GPU, or its emulation, needs and does not find.
    #[error("{0}")]
    Gpu(String),
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Torch(message) | Self::Gpu(message) if out_of_memory(message) => ErrorCode::ResourceExhausted,
            // Another process can go on, on this GPU or another.
            Self::Torch(_) | Self::Gpu(_) if self.is_device_lost() => ErrorCode::Unavailable,
            Self::Gpu(_) => ErrorCode::FailedPrecondition,
            Self::Torch(_) | Self::Memory(_) => ErrorCode::Internal,
            Self::Ranks(_) => ErrorCode::Unavailable,
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    /// Whether the GPU answers every further call of this process with the same error, until the process ends.
    pub fn is_device_lost(&self) -> bool {
        match self {
            Self::Torch(message) | Self::Gpu(message) => STICKY.iter().any(|words| message.contains(words)),
            Self::Memory(_) | Self::Ranks(_) => false,
        }
    }
}

/// CUDA's words for the errors after which, by its runtime API's reference (`cudaError_t`), "the process must be terminated and
/// relaunched".
const STICKY: [&str; 11] = [
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "misaligned address",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "hardware stack error",
    "device-side assert triggered",
    "unspecified launch failure",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error",
];

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(essence(&error.to_string()).to_owned())
    }
}

/// Only its words say that an exception is about memory: the CPU's allocator, the C++ runtime's, CUDA's.
fn out_of_memory(message: &str) -> bool {
    ["can't allocate memory", "not enough memory", "out of memory", "bad_alloc"]
        .iter()
        .any(|words| message.contains(words))
}

/// What libtorch says of itself: without the C++ backtrace after it, and without the words of Rust around it where a
/// panic quoted it.
pub(crate) fn essence(message: &str) -> &str {
    let quoted = message.split_once("Torch(\"").map_or(message, |(_, quoted)| quoted);
    let end = ["\n", "\\n", "\")"].iter().filter_map(|mark| quoted.find(mark)).min().unwrap_or(quoted.len());
    quoted[..end].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_stays_with_the_process_is_told_apart_from_one_that_passes() {
        let lost = Error::Torch("CUDA error: an illegal memory access was encountered".into());
        assert!(lost.is_device_lost() && lost.retryable(), "another process can go on");
        assert!(Error::Gpu("a kernel: unspecified launch failure".into()).is_device_lost());
        for passes in ["CUDA out of memory. Tried to allocate 20.00 MiB", "mat1 and mat2 shapes cannot be multiplied"] {
            assert!(!Error::Torch(passes.into()).is_device_lost(), "{passes}");
        }
    }
}
