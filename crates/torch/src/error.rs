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
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Torch(message) if out_of_memory(message) => ErrorCode::ResourceExhausted,
            Self::Torch(_) | Self::Memory(_) => ErrorCode::Internal,
            Self::Ranks(_) => ErrorCode::Unavailable,
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }
}

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
