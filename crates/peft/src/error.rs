//! What can be wrong with an adapter. Each error names the file, the field or tensor, the value and the remedy.

use tailor_domain::ErrorCode;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("folder {folder} has no {file}; {remedy}")]
    Missing { folder: String, file: String, remedy: String },

    #[error("file {path}: {problem}")]
    File { path: String, problem: String },

    #[error("{what} is {size} bytes, the limit is {limit}; this is no LoRA adapter of a supported size")]
    TooLarge { what: String, size: u64, limit: u64 },

    /// The config is no PEFT config, or a field of it makes no sense.
    #[error("adapter_config.json: field {field}: {problem}")]
    Config { field: String, problem: String },

    /// A valid PEFT adapter of a kind that Tailor would not reproduce faithfully.
    #[error("adapter_config.json: field {field} is {value}: {reason}")]
    Unsupported { field: String, value: String, reason: String },

    #[error("adapter_model.safetensors: {problem}")]
    Weights { problem: String },

    #[error("adapter_model.safetensors: tensor {tensor}: {problem}")]
    Tensor { tensor: String, problem: String },

    /// A sound adapter, made for something else.
    #[error("the adapter does not fit this base: {problem}; use the base it was trained on")]
    DoesNotFit { problem: String },

    /// Loading it would serve the base and say nothing.
    #[error("the adapter changes nothing: {problem}")]
    NoEffect { problem: String },

    #[error("the adapter cannot be compressed so: {problem}")]
    Compress { problem: String },
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing { .. }
            | Self::Config { .. }
            | Self::Unsupported { .. }
            | Self::Weights { .. }
            | Self::Tensor { .. }
            | Self::TooLarge { .. }
            | Self::Compress { .. } => ErrorCode::InvalidArgument,
            Self::DoesNotFit { .. } | Self::NoEffect { .. } => ErrorCode::FailedPrecondition,
            Self::File { .. } => ErrorCode::Internal,
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    pub(crate) fn config(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { field: shown(field), problem: shown(problem) }
    }

    pub(crate) fn weights(problem: impl Into<String>) -> Self {
        Self::Weights { problem: shown(problem) }
    }

    pub(crate) fn tensor(tensor: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Tensor { tensor: shown(tensor), problem: shown(problem) }
    }
}

/// Names and values come from the file and may be as long as it; a message goes into a log line and a gRPC status.
fn shown(text: impl Into<String>) -> String {
    clip(&text.into(), 1000)
}

/// The beginning of a text, of at most so many bytes.
pub(crate) fn clip(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}
