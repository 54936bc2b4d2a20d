//! The folder on disk, and how large its files may be.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::adapter::Adapter;
use crate::error::{Error, Result};

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What old versions of `peft` wrote. Never read.
pub const PICKLE_FILE: &str = "adapter_model.bin";

/// Checked before a file is read, so before anything of its size is allocated.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_config_bytes: u64,
    pub max_weights_bytes: u64,
}

impl Default for Limits {
    /// Room for rank 64 on every linear layer of a 70B model.
    fn default() -> Self {
        Self { max_config_bytes: 1 << 20, max_weights_bytes: 4 << 30 }
    }
}

impl Limits {
    pub(crate) fn check_config(&self, size: u64) -> Result<()> {
        within(CONFIG_FILE, size, self.max_config_bytes)
    }

    pub(crate) fn check_weights(&self, size: u64) -> Result<()> {
        within(WEIGHTS_FILE, size, self.max_weights_bytes)
    }
}

fn within(what: &str, size: u64, limit: u64) -> Result<()> {
    if size > limit {
        return Err(Error::TooLarge { what: what.to_owned(), size, limit });
    }
    Ok(())
}

impl Adapter {
    /// # Errors
    /// A file is missing, too large, a pickle, or wrong inside.
    pub fn read_dir(folder: &Path, limits: &Limits) -> Result<Self> {
        let config = read_file(folder, CONFIG_FILE, limits.max_config_bytes)?;
        let weights = read_file(folder, WEIGHTS_FILE, limits.max_weights_bytes)?;
        Self::from_bytes(&config, &weights, limits)
    }

    /// Writes both files into `folder`, making it if it is not there. The weights come last: a folder with weights is
    /// whole.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_dir(&self, folder: &Path) -> Result<()> {
        let weights = self.weights_to_bytes()?;
        fs::create_dir_all(folder).map_err(|error| file_error(folder, &error))?;
        for (name, bytes) in [(CONFIG_FILE, self.config_to_bytes()), (WEIGHTS_FILE, weights)] {
            let path = folder.join(name);
            fs::write(&path, bytes).map_err(|error| file_error(&path, &error))?;
        }
        Ok(())
    }
}

fn file_error(path: &Path, error: &std::io::Error) -> Error {
    Error::File { path: path.display().to_string(), problem: error.to_string() }
}

fn read_file(folder: &Path, name: &str, limit: u64) -> Result<Vec<u8>> {
    let path = folder.join(name);
    if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        let remedy = "what is there is no regular file".to_owned(); // a pipe would be waited for
        return Err(Error::Missing { folder: folder.display().to_string(), file: name.to_owned(), remedy });
    }
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing(folder, name)),
        Err(error) => return Err(file_error(&path, &error)),
    };
    let size = file.metadata().map_err(|error| file_error(&path, &error))?.len();
    within(name, size, limit)?;
    // The file may grow while it is read, so the limit is kept here too.
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| file_error(&path, &error))?;
    within(name, bytes.len() as u64, limit)?;
    Ok(bytes)
}

fn missing(folder: &Path, name: &str) -> Error {
    let remedy = if name == WEIGHTS_FILE && folder.join(PICKLE_FILE).exists() {
        format!("{PICKLE_FILE} is a pickle, which can run code when it is read; save with safe_serialization=True")
    } else {
        "name a folder that peft's save_pretrained wrote".to_owned()
    };
    Error::Missing { folder: folder.display().to_string(), file: name.to_owned(), remedy }
}
