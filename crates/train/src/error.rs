//! What can go wrong in training, by what the caller can do about it.

use tailor_domain::{ErrorCode, Invalid};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("row {row}: {problem}; tokenise the dataset again with this base")]
    Row { row: usize, problem: String },
    #[error(
        "no row to train on: of {rows} rows {too_long} are longer than train.max_tokens = {max_tokens} and \
         {without_target} have no target token; raise train.max_tokens or look at the dataset's report"
    )]
    NoRows { rows: usize, too_long: usize, without_target: usize, max_tokens: u32 },
    #[error(
        "step {step}: {what} is not finite (loss {loss}, gradient norm {grad_norm}) over rows {rows}; \
         lower train.learning_rate, or look at those rows"
    )]
    NotFinite { step: u64, what: &'static str, loss: f64, grad_norm: f64, rows: String },
    #[error(
        "step {step}: the loss jumped to {loss} from a mean of {mean:.4} (gradient norm {grad_norm}) over rows {rows}; \
         lower train.learning_rate, or look at those rows"
    )]
    Spike { step: u64, loss: f64, mean: f64, grad_norm: f64, rows: String },
    #[error("{at}: {source}{}", remedy(source))]
    Device { at: String, source: tailor_models::Error },
    #[error("the rows to train on: {0}")]
    Rows(#[from] tailor_text::Error),
    #[error("checkpoint: {0}")]
    Checkpoint(String),
    /// Another rank is gone or goes; the run can be taken up again from its checkpoint.
    #[error("{at}: {problem}")]
    Ranks { at: String, problem: String },
    /// The observer asked for it while there was nothing to keep.
    #[error("{at}: stopped")]
    Stopped { at: &'static str },
    #[error("the trained adapter cannot be kept: {0}")]
    Adapter(#[from] tailor_peft::Error),
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) | Self::Row { .. } => ErrorCode::InvalidArgument,
            Self::NoRows { .. } | Self::NotFinite { .. } | Self::Spike { .. } => ErrorCode::FailedPrecondition,
            Self::Device { source, .. } => source.code(),
            Self::Rows(source) => source.code(),
            Self::Checkpoint(_) => ErrorCode::DataLoss,
            Self::Ranks { .. } => ErrorCode::Unavailable,
            Self::Stopped { .. } => ErrorCode::Cancelled,
            Self::Adapter(source) => source.code(),
        }
    }

    /// Whether the run went astray, and what it learnt before is sound.
    pub fn is_divergence(&self) -> bool {
        matches!(self, Self::NotFinite { .. } | Self::Spike { .. })
    }

    /// Memory may be free again on the next attempt; little else here mends itself.
    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    /// As [`tailor_torch::Error::is_device_lost`].
    pub fn is_device_lost(&self) -> bool {
        matches!(self, Self::Device { source, .. } if source.is_device_lost())
    }

    /// Says where a collective failed.
    pub(crate) fn ranks(place: impl Into<String>) -> impl FnOnce(tailor_torch::Error) -> Self {
        move |source| match source {
            tailor_torch::Error::Ranks(_) => Self::Ranks { at: place.into(), problem: source.to_string() },
            other => Self::Device { at: place.into(), source: other.into() },
        }
    }

    /// Says where a failure of the model or of torch happened.
    pub(crate) fn at(place: impl Into<String>) -> impl FnOnce(tailor_models::Error) -> Self {
        move |source| Self::Device { at: place.into(), source }
    }
}

fn remedy(error: &tailor_models::Error) -> &'static str {
    match error.code() {
        ErrorCode::ResourceExhausted => "; lower train.micro_batch_rows or train.max_tokens",
        _ => "",
    }
}
