//! A disk that is really small, for tests of what happens when it is full.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TempDir;

/// A file system of a given size, mounted on a temporary folder; gone when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one. `None`, and a loud line, where that is not allowed: mounting takes root, so it is never required.
    pub fn mount(size_bytes: u64) -> Option<Self> {
        let folder = TempDir::new();
        let options = format!("size={size_bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { folder }),
            _ => {
                eprintln!("SKIPPED: a small disk cannot be mounted here (needs root)");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process of the test may still have a file open.
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}
