//! Cleaned rows as they are kept: one JSON object a line.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use futures::TryStreamExt as _;
use tailor_domain::Digest;
use tailor_serverkit::spool;
use tailor_text::Row;
use tempfile::TempPath;

use crate::{Datasets, Error, Result};

/// Rows of a file that cleaning made.
///
/// # Errors
/// [`Error::Spool`]: the file cannot be opened. As items: [`Error::Rows`].
pub fn read(dataset: &str, path: &Path) -> Result<impl Iterator<Item = Result<Row>>> {
    let file = File::open(path).map_err(|error| spool::Error::from_io(path, &error))?;
    let dataset = dataset.to_owned();
    let lines = BufReader::new(file).split(b'\n').zip(1..);
    Ok(lines.map(move |(bytes, line)| {
        let broken = |problem: String| Error::Rows { dataset: dataset.clone(), line, problem };
        let bytes = bytes.map_err(|error| broken(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))
    }))
}

impl Datasets {
    /// A blob of rows as a local, checked, temporary file.
    pub(crate) async fn fetch_rows(&self, digest: &Digest) -> Result<TempPath> {
        let path = self.temporary_file()?;
        self.store.fetch_blob_to(digest, &path).await?;
        Ok(path)
    }

    /// An empty file in the spool, deleted when dropped.
    pub(crate) fn temporary_file(&self) -> Result<TempPath> {
        let failed = |error: std::io::Error| spool::Error::from_io(&self.spool_dir, &error);
        std::fs::create_dir_all(&self.spool_dir).map_err(failed)?;
        Ok(tempfile::NamedTempFile::new_in(&self.spool_dir).map_err(failed)?.into_temp_path())
    }

    /// The first rows of a blob, without reading the rest.
    pub(crate) async fn first_rows(&self, dataset: &str, digest: &Digest, count: usize) -> Result<Vec<Row>> {
        let mut pieces = self.store.open_blob_stream(digest).await?;
        let (mut bytes, mut lines) = (Vec::new(), 0);
        while lines < count
            && let Some(piece) = pieces.try_next().await?
        {
            lines += piece.iter().filter(|byte| **byte == b'\n').count();
            bytes.extend_from_slice(&piece);
        }
        let whole_lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let parse = |(text, line): (&[u8], u64)| {
            serde_json::from_slice(text).map_err(|error| Error::Rows {
                dataset: dataset.to_owned(),
                line,
                problem: error.to_string(),
            })
        };
        whole_lines.take(count).zip(1..).map(parse).collect()
    }
}
