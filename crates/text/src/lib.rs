//! Text on its way to a model: row files, cleaning, tokenizers, chat templates, label masks, packing, shards, and the
//! metrics of what comes back.
//!
//! Data travels one way: [`rows`] → [`clean`] → [`example`] (with [`tokenizer`] and [`chat`]) → [`shard`] → [`pack`].
//! What grows with a file's rows lies on disk (a [`Column`], a shard's index), so that a large file takes no more memory than a
//! small one.
//!
//! Everything read here may be hostile: memory is bounded by the limits that each reader is given, and no input panics.

pub mod chat;
pub mod clean;
mod column;
mod error;
pub mod example;
pub mod metrics;
pub mod pack;
pub mod rows;
mod seed;
pub mod shard;
mod sort;
pub mod template;
pub mod tokenizer;

pub use chat::{ChatOptions, ChatTemplate, Message};
pub use clean::{CleanOptions, Cleaned, Cleaner, Holdout, RowFile};
pub use column::Column;
pub use error::{Error, Refusal, Result};
pub use example::{Example, ExampleBuilder, Preference};
pub use rows::{ColumnMap, Columns, Format, Outcome, Row, RowContent, RowLimits, RowReader, serve_if_asked};
pub use sort::Sorter;
pub use template::PromptTemplate;
pub use tokenizer::{Tokenizer, TokenizerFiles};
