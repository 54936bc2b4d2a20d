//! DatasetService: rows of (input, expected output), conversations and preference pairs, from upload to shards.
//!
//! Data travels one way, and each step leaves an immutable object in the store:
//!
//! ```text
//! upload ──▶ ingest ──▶ versions                    shards ──▶ trainer            submission ◀── trainer's predictions
//! (spool)    (check,    (manifest: the dataset      (ids and loss mask; for       (kept for good, compared with the
//!             clean,     exists from here on)        validation prompts only)      targets, and then shown beside them)
//!             split)
//! ```
//!
//! The targets of validation rows are in one blob, whose digest no answer names. The shards that a trainer reads are made
//! of its inputs alone.

mod bases;
mod error;
mod grpc;
mod import;
mod ingest;
mod preview;
mod receive;
mod rows;
mod score;
mod shards;
mod submission;
mod tokenise;
mod upload;
mod versions;

use std::path::PathBuf;
use std::sync::Arc;

use tailor_blobs::{S3Options, Store};
use tailor_pb::dataset::dataset_service_server::DatasetServiceServer;
use tailor_serverkit::spool::Limit;
use tailor_serverkit::{Clock, Serving, Settings, clock, limited, serve};
use tailor_text::RowLimits;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use error::{Error, Result};

/// Files that are checked, cleaned or tokenised at once; each takes a processor.
const MAX_AT_ONCE: usize = 4;

/// The dataset service's logic. Cheap to clone.
#[derive(Clone)]
pub struct Datasets {
    store: Store,
    clock: Clock,
    /// Where uploads and work in progress lie.
    spool_dir: PathBuf,
    upload_limit: Limit,
    row_limits: RowLimits,
    /// The program that reads Parquet files apart.
    parquet_reader: Option<PathBuf>,
    /// Permits for work that takes memory and a processor.
    work: Arc<Semaphore>,
    tokenizers: bases::Cache,
    imports: Arc<Imports>,
}

/// What files may be imported from, and how it is reached.
struct Imports {
    places: Vec<String>,
    /// Our own store's scheme, and how its like are reached. Others are by the usual variables of the environment.
    own: (String, S3Options),
}

impl Imports {
    fn of(settings: &Settings) -> Self {
        let scheme = settings.store.url.split_once("://").map_or("file", |(scheme, _)| scheme);
        Self {
            places: settings.dataset.import_places().map(str::to_owned).collect(),
            own: (scheme.to_owned(), tailor_serverkit::store::options(&settings.store)),
        }
    }
}

impl Datasets {
    pub fn new(settings: &Settings, store: Store, clock: Clock) -> Self {
        let max_line_bytes = settings.dataset.max_line_bytes;
        let max_skipped_bytes = RowLimits::default().max_skipped_bytes.max(max_line_bytes as u64);
        Self {
            store,
            clock,
            spool_dir: settings.cache_dir.join("spool"),
            upload_limit: Limit { bytes: settings.dataset.max_upload_bytes, setting: "dataset.max_upload_bytes" },
            row_limits: RowLimits {
                max_line_bytes,
                max_skipped_bytes,
                max_unpacked_bytes: settings.dataset.max_upload_bytes,
            },
            parquet_reader: settings.dataset.parquet_reader.clone().or_else(|| std::env::current_exe().ok()),
            work: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            tokenizers: bases::Cache::default(),
            imports: Arc::new(Imports::of(settings)),
        }
    }

    /// Runs work off the threads that answer calls.
    pub(crate) async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let stopped = || Error::Stopped { what: "the work on the dataset" };
        let permit = self.work.clone().acquire_owned().await.map_err(|_| stopped())?;
        let span = tracing::Span::current();
        let task = tokio::task::spawn_blocking(move || {
            // Held until the work ends, even if the caller has gone.
            let _permit = permit;
            span.in_scope(work)
        });
        task.await.map_err(|_| stopped())?
    }
}

/// Serves datasets over `store` until `stop`.
///
/// # Errors
/// [`Error::Listener`].
pub async fn start(
    settings: &Settings,
    store: Store,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<Serving> {
    let datasets = Datasets::new(settings, store, clock::system());
    let server = limited!(DatasetServiceServer::new(grpc::Api::new(datasets)));
    serve("dataset", listener, Routes::new(server), settings, stop).await.map_err(Error::Listener)
}
