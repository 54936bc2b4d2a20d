//! What can be wrong with a file, a tokenizer, a template or a shard; by what the caller can do about it.

use tailor_domain::ErrorCode;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why one row cannot be trained on although it is well formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{tokens} tokens, the limit is {limit}")]
    TooLong { tokens: usize, limit: usize },
    #[error("no token of the target is left to learn from")]
    NothingToLearn,
    #[error("both answers have the same tokens")]
    SameAnswer,
    #[error("the chat template does not take its turns: {problem}")]
    Template { problem: String },
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the file is empty; it must have at least one row")]
    Empty,

    #[error("the file is {kind}, not text; {remedy}")]
    NotText { kind: String, remedy: String },

    #[error("line {line}: more than {limit} bytes without an end of line; this is no row file")]
    EndlessLine { line: u64, limit: u64 },

    #[error("the Parquet file cannot be read: {problem}")]
    Parquet { problem: String },

    #[error("line {line}: {problem}")]
    Header { line: u64, problem: String },

    /// `likeliest` is the column that looks most like the one that was asked for.
    #[error("{}", missing_column(wanted, found, likeliest.as_deref()))]
    MissingColumn { wanted: String, found: Vec<String>, likeliest: Option<String> },

    #[error("no row is left: {problem}")]
    NoRows { problem: String },

    #[error("field {field}: {problem}")]
    Option { field: &'static str, problem: String },

    #[error("column {column} has more than {limit} different labels; it is no label column, name another or none")]
    TooManyLabels { column: String, limit: usize },

    #[error(
        "line {line}: its label in column {column} has {bytes} bytes, the limit is {limit}; it is no label column, name another or none"
    )]
    LabelTooLong { line: u64, column: String, bytes: usize, limit: usize },

    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),

    /// One of the tokenizer's files; `field` is empty when it is the whole file.
    #[error("{file}: {}{problem}", prefixed(field))]
    Tokenizer { file: String, field: String, problem: String },

    #[error("chat template: {problem}")]
    ChatTemplate { problem: String },

    #[error("prompt template: {problem}")]
    PromptTemplate { problem: String },

    /// The row cannot be used; others may.
    #[error("row refused: {0}")]
    Row(Refusal),

    #[error("shard: {problem}")]
    Shard { problem: String },

    #[error("packing: {problem}")]
    Packing { problem: String },
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Empty
            | Self::NotText { .. }
            | Self::EndlessLine { .. }
            | Self::Parquet { .. }
            | Self::Header { .. }
            | Self::MissingColumn { .. }
            | Self::NoRows { .. }
            | Self::Option { .. }
            | Self::TooManyLabels { .. }
            | Self::LabelTooLong { .. }
            | Self::Tokenizer { .. }
            | Self::ChatTemplate { .. }
            | Self::PromptTemplate { .. }
            | Self::Row(_)
            | Self::Packing { .. } => ErrorCode::InvalidArgument,
            Self::Shard { .. } => ErrorCode::DataLoss,
            Self::Io(_) => ErrorCode::Internal,
        }
    }

    pub fn retryable(&self) -> bool {
        self.code().retryable()
    }

    pub(crate) fn tokenizer(file: &str, field: &str, problem: impl Into<String>) -> Self {
        Self::Tokenizer { file: file.to_owned(), field: clipped(field), problem: clipped(&problem.into()) }
    }

    pub(crate) fn parquet(problem: impl Into<String>) -> Self {
        Self::Parquet { problem: clipped(&problem.into()) }
    }

    pub(crate) fn chat_template(problem: &str) -> Self {
        Self::ChatTemplate { problem: clipped(problem) }
    }

    /// A loss over nothing is no number.
    pub(crate) fn nothing_counts(row: u32) -> Self {
        Self::shard(format!("row {row}: no token counts in the loss"))
    }

    pub(crate) fn shard(problem: impl Into<String>) -> Self {
        Self::Shard { problem: problem.into() }
    }
}

/// Names and values come from the file and may be as long as it; a message goes into a log line and a gRPC status.
fn clipped(text: &str) -> String {
    const LIMIT: usize = 1000;
    match text.char_indices().find(|(at, letter)| at + letter.len_utf8() > LIMIT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn prefixed(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("field {field}: ") }
}

fn missing_column(wanted: &str, found: &[String], likeliest: Option<&str>) -> String {
    const LISTED: usize = 20;
    let mut message = format!(
        "no column for {wanted}; the file has {}",
        found.iter().take(LISTED).map(|name| clipped(&format!("{name:?}"))).collect::<Vec<_>>().join(", ")
    );
    if found.len() > LISTED {
        message.push_str(&format!(" and {} more", found.len() - LISTED));
    }
    match likeliest {
        Some(name) => message.push_str(&format!("; did you mean {name:?}?")),
        None => message.push_str("; name the column"),
    }
    message
}
