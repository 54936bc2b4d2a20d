//! Object storage: every byte that must outlive a process.
//!
//! Two kinds of object, and no third:
//!
//! - a **blob** is bytes under their own sha256. Writing it twice is writing it once; reading it checks it;
//! - a **record** is a JSON object created if absent and never changed. Numbered records (`…/00000001.json`) form a log.
//!
//! Nothing is ever updated in place, so the only promise needed of a backend is create-if-absent, and
//! [`Store::prove_conditional_create`] checks that promise before anything relies on it.
//!
//! What no record names any more is collected in two phases ([`gc`]).
//!
//! Only this crate knows `object_store`.

mod azure;
mod blob;
mod bucket;
mod classify;
mod error;
mod folder;
mod foreign;
pub mod gc;
mod gcs;
mod key;
mod log;
mod open;
mod prove;
mod record;
mod sign;
mod store;

#[cfg(feature = "conformance")]
pub mod conformance;

pub use blob::{BlobStream, StoredBlob};
pub use bucket::create_bucket;
pub use error::{Error, Result};
pub use foreign::{Found, ObjectUrl};
pub use key::{numbered_key, validate_key, validate_name};
pub use open::S3Options;
pub use record::{Creation, record_digest};
pub use store::{Children, Store};

/// The trait behind [`Store::over`], for wrappers that inject faults.
pub use object_store::ObjectStore;
