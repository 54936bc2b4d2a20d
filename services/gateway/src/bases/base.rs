//! A base that answers, and what keeps it where it is.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tailor_domain::{BaseManifest, Digest, Family};
use tailor_text::Tokenizer;
use tokio::sync::OnceCell;

use crate::device::Device;

pub struct Base {
    pub manifest: BaseManifest,
    pub tokenizer: Tokenizer,
    pub device: Device,
}

impl Base {
    pub fn is_encoder_decoder(&self) -> bool {
        self.manifest.family == Family::EncoderDecoder
    }
}

/// A base that stays where it is as long as this is held.
#[derive(Clone)]
pub struct InUse {
    base: Arc<Base>,
    _lease: Arc<()>,
}

impl Deref for InUse {
    type Target = Base;

    fn deref(&self) -> &Base {
        &self.base
    }
}

/// What a base is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A request: others leave for it where they must.
    Now,
    /// The process before had it, and used so many others after it. It comes back beside what is there, and nobody has used it
    /// by that.
    Again { place: u64 },
}

/// A base that was started.
pub struct Started {
    pub base: Arc<Base>,
    lease: Arc<()>,
    last_used: AtomicU64,
}

/// A base's place: empty until its start has ended well. Whoever waits for that, or is about to use the base, holds it.
pub type Slot = Arc<OnceCell<Started>>;

/// By fingerprint: a name may come to mean another base, a fingerprint never.
pub type Slots = HashMap<Digest, Slot>;

impl Started {
    pub fn new(base: Base) -> Self {
        Self { base: Arc::new(base), lease: Arc::default(), last_used: AtomicU64::new(0) }
    }

    /// `at` grows from use to use.
    pub fn used(&self, at: u64) -> InUse {
        // What is told of the process before is older than any use in this one.
        self.last_used.fetch_max(at, Ordering::Relaxed);
        InUse { base: Arc::clone(&self.base), _lease: Arc::clone(&self.lease) }
    }

    pub fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    pub fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.lease) > 1
    }
}
