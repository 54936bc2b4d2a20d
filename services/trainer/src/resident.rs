//! Bases in memory: jobs on the same base and compute type share one. Only the device's thread holds them.
//!
//! A base is loaded for the first job that needs it and leaves with the last. Its packed weights are mapped from the cache, so
//! that loading it again soon costs little.

use std::collections::HashMap;
use std::path::Path;
use std::rc::{Rc, Weak};

use tailor_domain::Digest;
use tailor_models::{Base, Compute, LoadOptions};

use crate::error::Result;

/// A base by its fingerprint, as it is computed with.
type Key = (Digest, Compute);

#[derive(Default)]
pub struct Bases {
    resident: HashMap<Key, Weak<Base>>,
}

/// A base, and whether another job has it too.
pub struct Found {
    pub base: Rc<Base>,
    pub shared: bool,
}

impl Bases {
    /// The base of this fingerprint, from memory or else from `folder`.
    ///
    /// # Errors
    /// The folder holds no base that can be loaded.
    pub fn get(&mut self, fingerprint: &Digest, compute: Compute, folder: &Path) -> Result<Found> {
        self.resident.retain(|_, base| base.strong_count() > 0);
        let key = (fingerprint.clone(), compute);
        if let Some(base) = self.resident.get(&key).and_then(Weak::upgrade) {
            return Ok(Found { base, shared: true });
        }
        let device = tailor_models::chosen_device().map_err(tailor_models::Error::from)?;
        let base = Rc::new(Base::load(folder, &LoadOptions { compute, device })?);
        self.resident.insert(key, Rc::downgrade(&base));
        Ok(Found { base, shared: false })
    }
}
