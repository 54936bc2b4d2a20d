//! Model folders from a hub that speaks Hugging Face's protocol: by id, at a commit, only what is needed, verified.
//!
//! # Using it
//!
//! ```text
//! let hub = Hub::new(HubOptions::from_env(cache_folder))?;      // HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE
//! let repo = RepoId::parse("google/mt5-small")?;
//! let snapshot = hub.snapshot(&repo, "main", &mut |progress| { … }).await?;
//! snapshot.folder;  snapshot.commit;                            // a Hugging Face folder, complete
//! ```
//!
//! Needed are config.json, the tokenizer's files and the safetensors that the index names. A revision (branch, tag, commit)
//! is resolved to its commit once; files are kept under the commit, so that a snapshot never changes. What broke off is
//! resumed, also by the next call. Large files are checked against the SHA-256 that the hub states, small ones against
//! their git object id. Pickled weights are refused: loading them runs code.
//!
//! What was fetched stays until somebody removes it ([`cached`]).

mod cache;
mod client;
mod error;
mod files;
mod repo;
mod snapshot;

pub use cache::{Cached, cached};
pub use client::{Hub, HubOptions};
pub use error::{Error, Result};
pub use repo::RepoId;
pub use snapshot::{Progress, Snapshot};
