//! A door for each digest: what loads and unloads goes through it one at a time, for different digests side by side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tailor_domain::Digest;

pub type Gate = Arc<tokio::sync::Mutex<()>>;

#[derive(Default)]
pub struct Gates(Mutex<HashMap<Digest, Gate>>);

impl Gates {
    pub fn at(&self, digest: &Digest) -> Gate {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Doors that nobody stands at are taken down, so that they do not add up.
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        Arc::clone(gates.entry(digest.clone()).or_default())
    }
}
