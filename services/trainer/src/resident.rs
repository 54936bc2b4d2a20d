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
    /// The folder holds no base that can be loaded; `should_stop` said so before it was.
    pub fn get(
        &mut self,
        fingerprint: &Digest,
        compute: Compute,
        folder: &Path,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<Found> {
        self.resident.retain(|_, base| base.strong_count() > 0);
        let key = (fingerprint.clone(), compute);
        if let Some(base) = self.resident.get(&key).and_then(Weak::upgrade) {
            return Ok(Found { base, shared: true });
        }
        let device = tailor_models::chosen_device().map_err(tailor_models::Error::from)?;
        let base = Rc::new(Base::load_unless(folder, &LoadOptions { compute, device }, should_stop)?);
        self.resident.insert(key, Rc::downgrade(&base));
        Ok(Found { base, shared: false })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::error::Error;

    #[test]
    fn a_base_that_nobody_waits_for_is_not_loaded_and_one_in_memory_needs_no_wait() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/llama-gqa-nf4");
        let (mut bases, fingerprint) = (Bases::default(), Digest::of(b"a base"));
        let mut get = |stop: bool| bases.get(&fingerprint, Compute::F32, &folder, &|| stop);
        let stopped = get(true).map(drop).expect_err("nobody waits");
        assert!(matches!(stopped, Error::Model(tailor_models::Error::Stopped)), "{stopped}");
        let found = get(false).expect("loads");
        assert!(!found.shared);
        assert!(get(true).expect("is there").shared);
    }
}
