//! A folder that is gone when the test is over.

use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct TempDir(tempfile::TempDir);

impl TempDir {
    /// # Panics
    /// No folder can be made.
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("tailor-test-").tempdir().expect("make a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The folder as text, for settings.
    pub fn display(&self) -> String {
        self.0.path().display().to_string()
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Default for TempDir {
    fn default() -> Self {
        Self::new()
    }
}
