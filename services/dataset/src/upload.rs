//! One file on its way in: received, checked, and only then stored. The manifest comes last, so a dataset is either whole or not
//! there, whatever fails.

use futures::Stream;
use tailor_domain::{DatasetManifest, DatasetName, Digest, Version};
use tailor_text::{CleanOptions, ColumnMap, Format};

use crate::ingest::{self, Ingested};
use crate::receive::Arrived;
use crate::versions::Fresh;
use crate::{Datasets, Error, Result};

/// What the first message of an upload says.
#[derive(Debug, Clone)]
pub struct Header {
    pub name: DatasetName,
    /// What the caller calls the file.
    pub file_name: String,
    pub format: Format,
    pub columns: ColumnMap,
    pub prompt_template: String,
    pub clean: CleanOptions,
    pub announced: Announced,
    pub new_version: bool,
}

/// What its sender knows of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announced {
    pub sha256: Option<Digest>,
    pub size_bytes: Option<u64>,
    /// Bytes that an upload brought which broke off; the chunks go on from there. Only of a file whose sha256 is known.
    pub offset: u64,
}

/// A dataset, and whether this upload made it.
#[derive(Debug, Clone, PartialEq)]
pub struct Uploaded {
    pub manifest: DatasetManifest,
    pub created: bool,
}

impl Datasets {
    /// Receives a file and makes a dataset version of it. The same file with the same options is stored once.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::WrongBytes`], [`Error::AlreadyExists`], [`Error::Spool`] (too large, disk full),
    /// [`Error::BrokenOff`], [`Error::OtherOffset`], [`Error::Store`]. No dataset was made then.
    pub async fn upload(&self, header: Header, chunks: impl Stream<Item = Result<Vec<u8>>>) -> Result<Uploaded> {
        let source = self.receive(&header, chunks).await?;
        let outcome = self.make(&header, &source).await;
        match outcome {
            // The same call may be made again, and need not send the file.
            Err(Error::Store(_) | Error::Stopped { .. }) => {}
            Ok(_) | Err(_) => source.forget(),
        }
        outcome
    }

    /// Makes a dataset version of a file that is here.
    pub(crate) async fn make(&self, header: &Header, source: &Arrived) -> Result<Uploaded> {
        let ingested = self.ingest(header, source).await?;
        let manifest = self.store_parts(header, source, ingested).await?;
        match self.add_version(&manifest, header.new_version).await? {
            Fresh::Created(manifest) => {
                let report = &manifest.report;
                tracing::info!(
                    dataset = %manifest.name, version = %manifest.version, train = report.rows_train,
                    validation = report.rows_validation, dropped = report.rows_dropped(), "dataset created"
                );
                Ok(Uploaded { manifest, created: true })
            }
            Fresh::Known(manifest) => Ok(Uploaded { manifest, created: false }),
        }
    }

    async fn ingest(&self, header: &Header, source: &Arrived) -> Result<Ingested> {
        let (header, path) = (header.clone(), source.path().to_owned());
        let work = ingest::Work {
            limits: self.row_limits,
            folder: self.spool_dir.clone(),
            parquet_reader: self.parquet_reader.clone().unwrap_or_default(),
        };
        self.off_thread(move || work.ingest(&path, &header)).await
    }

    /// Stores the bytes. Without a manifest nobody sees them, and storing them again is storing them once.
    async fn store_parts(&self, header: &Header, source: &Arrived, parts: Ingested) -> Result<DatasetManifest> {
        let source = self.store.put_blob_file(source.path()).await?;
        let train = self.store.put_blob_file(&parts.train).await?;
        let validation = self.store.put_blob_file(&parts.validation).await?;
        Ok(DatasetManifest {
            name: header.name.clone(),
            // The number is taken when the manifest is created.
            version: Version(0),
            kind: parts.kind,
            source: source.digest,
            source_size_bytes: source.size_bytes,
            file_name: header.file_name.clone(),
            train: train.digest,
            validation: validation.digest,
            prompt_template: parts.prompt_template,
            report: parts.report,
            created_at_ms: (self.clock)(),
        })
    }
}
