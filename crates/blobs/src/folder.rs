//! A folder whose files are blobs, brought to local disk where it can be mapped.

use std::path::Path;

use tailor_domain::FileRef;

use crate::{Error, Result, Store};

impl Store {
    /// Brings the files of a folder to `dir`, each verified as it arrives and put in place by a rename. Files that are
    /// there with the right size are kept: only whole, verified files ever get their final name.
    ///
    /// # Errors
    /// As [`Store::fetch_blob_to`]; [`Error::InvalidKey`] for a name that is more than a file's name. What arrived before
    /// stays and is not fetched again.
    pub async fn fetch_folder(&self, files: &[FileRef], dir: &Path) -> Result<()> {
        let local =
            |problem: std::io::Error| Error::File { path: dir.display().to_string(), problem: problem.to_string() };
        for file in files {
            check_file_name(&file.name)?;
        }
        tokio::fs::create_dir_all(dir).await.map_err(local)?;
        for file in files {
            let path = dir.join(&file.name);
            let there = tokio::fs::metadata(&path).await.is_ok_and(|found| found.len() == file.size_bytes);
            if !there {
                self.fetch_blob_to(&file.digest, &path).await?;
            }
        }
        Ok(())
    }
}

/// A manifest is content, and content never names a path: one plain component, on any system.
fn check_file_name(name: &str) -> Result<()> {
    let plain = !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', '\0']);
    if plain {
        return Ok(());
    }
    Err(Error::InvalidKey {
        key: name.to_owned(),
        problem: "a file of a folder needs a plain name without separators".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_never_climbs_out_of_the_folder() {
        for bad in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0"] {
            assert!(check_file_name(bad).is_err(), "{bad:?} must be refused");
        }
        for good in ["config.json", "README.md", "model-00001-of-00002.safetensors", ".gitattributes"] {
            assert!(check_file_name(good).is_ok(), "{good:?} must be accepted");
        }
    }
}
