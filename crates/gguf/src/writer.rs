//! A GGUF file in the making: announced, written tensor after tensor beside its place, and put there by one rename.

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::format::{ALIGNMENT, TensorInfo, Value, header};
use crate::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;

pub(crate) struct GgufWriter {
    target: PathBuf,
    file: BufWriter<NamedTempFile>,
    tensors: Vec<TensorInfo>,
    /// Which tensor is being written, and how much of it is there.
    current: usize,
    written: u64,
    total: u64,
}

impl GgufWriter {
    /// Writes everything but the tensors, whose bytes must follow in the order of `tensors`.
    ///
    /// # Errors
    /// `target` exists, or the disk.
    pub fn create(target: &Path, metadata: &[(String, Value)], tensors: Vec<TensorInfo>) -> Result<Self> {
        if target.exists() {
            return Err(Error::file(target, "exists; give a new file"));
        }
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let scratch = NamedTempFile::new_in(parent).map_err(Error::io(parent))?;
        let header = header(metadata, &tensors);
        let mut writer = Self {
            target: target.to_owned(),
            file: BufWriter::with_capacity(BUFFER_BYTES, scratch),
            tensors,
            current: 0,
            written: 0,
            total: header.len() as u64,
        };
        writer.file.write_all(&header).map_err(Error::io(target))?;
        Ok(writer)
    }

    /// The next bytes of the current tensor.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.file.write_all(bytes).map_err(Error::io(&self.target))
    }

    /// The current tensor is whole; the next one follows.
    ///
    /// # Errors
    /// Its bytes are not those announced, which is a fault of this crate and must not become a file.
    pub fn end_tensor(&mut self) -> Result<()> {
        let announced = self.tensors.get(self.current).map(TensorInfo::size_bytes);
        if announced != Some(self.written) {
            let name = self.tensors.get(self.current).map_or("(none)", |tensor| &tensor.name);
            return Err(Error::value(name, format!("{} bytes written, {announced:?} announced", self.written)));
        }
        let padded = self.written.next_multiple_of(ALIGNMENT);
        let padding = [0u8; ALIGNMENT as usize];
        self.file.write_all(&padding[..(padded - self.written) as usize]).map_err(Error::io(&self.target))?;
        self.total += padded;
        self.current += 1;
        self.written = 0;
        Ok(())
    }

    /// Puts the file in its place; gives its size in bytes.
    ///
    /// # Errors
    /// A tensor is missing, something came to lie at the place meanwhile, or the disk.
    pub fn finish(self) -> Result<u64> {
        let Self { target, file, tensors, current, total, .. } = self;
        if let Some(missing) = tensors.get(current) {
            return Err(Error::value(&missing.name, "announced and not written"));
        }
        let scratch = file.into_inner().map_err(|error| Error::io(&target)(error.into_error()))?;
        scratch.as_file().sync_all().map_err(Error::io(&target))?;
        readable_by_all(&scratch, &target)?;
        scratch.persist_noclobber(&target).map_err(|error| Error::io(&target)(error.error))?;
        Ok(total)
    }
}

/// A scratch file is its owner's alone; what is put in place is a file like any other.
#[cfg(unix)]
fn readable_by_all(scratch: &NamedTempFile, target: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    scratch.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(Error::io(target))
}

#[cfg(not(unix))]
fn readable_by_all(_: &NamedTempFile, _: &Path) -> Result<()> {
    Ok(())
}
