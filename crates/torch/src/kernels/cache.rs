//! Compiled kernels on disk, named by what they were compiled from and for.
//!
//! A file appears by a rename, so whoever finds one finds it whole. Losing the folder costs seconds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

/// `$XDG_CACHE_HOME/tailor/kernels`, or the same under `~/.cache`; none where the process has no home.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("tailor/kernels"))
}

/// The file of this name, if it is there.
pub(crate) fn find(folder: Option<&Path>, name: &str) -> Option<Vec<u8>> {
    fs::read(folder?.join(name)).ok().filter(|bytes| !bytes.is_empty())
}

/// Keeps the bytes for the next process. That it cannot is no error: they are made again then.
pub(crate) fn keep(folder: Option<&Path>, name: &str, bytes: &[u8]) {
    let Some(folder) = folder else { return };
    let partial = folder.join(format!("{name}.{}", process::id()));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&partial, bytes));
    if written.and_then(|()| fs::rename(&partial, folder.join(name))).is_err() {
        let _ = fs::remove_file(&partial);
    }
}
