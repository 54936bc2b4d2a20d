//! Lets several runs share the cache: one works, the others wait.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Held until it is dropped, or the process ends in whatever way.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits, and says so, while another process holds the lock file.
    pub fn take(path: &Path, what: &str) -> Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                println!("{what}: another set-up is at work, waiting for it");
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", path.display()),
        }
        Ok(Self { _file: file })
    }
}
