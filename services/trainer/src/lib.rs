//! TrainingService: jobs (api) and the worker that trains them.
//!
//! A job is an object in storage before anything else happens. Its state is the fold of its log; the queue only makes it
//! start sooner, and losing the queue loses nothing: the reconciler puts back whatever the store says is unfinished.
//!
//! ```text
//! grpc ──▶ jobs ──▶ journal ──▶ store          reconcile: journal ──▶ queue
//!            └────▶ queue                      worker: queue ──▶ attempt ──▶ (dataset, train, registry), journal
//!                                                        └─────▶ seat: a rank of another worker's attempt
//! ```

mod allowance;
mod attempt;
mod calibrations;
mod checkpoints;
mod device;
mod error;
#[cfg(test)]
mod fixtures;
mod grpc;
mod jobs;
mod journal;
mod keeper;
mod matching;
mod planner;
mod predictions;
mod progress;
mod ranks;
mod reconcile;
mod resident;
mod room;
mod seat;
mod shards;
mod training;
mod view;
mod waiting;
mod worker;

use std::sync::Arc;

use tailor_blobs::Store;
use tailor_pb::training::training_service_server::TrainingServiceServer;
use tailor_queue::JobQueue;
use tailor_serverkit::{Serving, Settings, limited, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use error::{Error, Result};
pub use journal::Journal;

use crate::jobs::Jobs;

/// Starts the roles that the settings name and serves until `stop`.
///
/// # Errors
/// An address of another service that cannot be one; a listener without an address.
pub async fn start(
    settings: &Settings,
    store: Store,
    queue: Arc<dyn JobQueue>,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<Serving> {
    let journal = Journal::new(store.clone());
    let clients = attempt::Clients::connect(settings)?;
    let jobs = Jobs::new(journal.clone(), store.clone(), queue.clone(), clients.clone(), &settings.trainer);
    let mut routes = Routes::default();
    if settings.trainer.api {
        let api = grpc::Api::new(jobs.clone(), stop.clone());
        routes = routes.add_service(limited!(TrainingServiceServer::new(api)));
    }
    let mut serving = serve("tailor-trainer", listener, routes, settings, stop.clone()).await.map_err(Error::Listen)?;
    if settings.trainer.api {
        let reconciler = reconcile::Reconciler::new(jobs, queue.clone(), &settings.trainer);
        serving = serving.beside("reconciler", reconciler.run(stop.clone()));
    }
    if settings.trainer.worker {
        let worker = worker::Worker::new(journal, queue, store, clients, settings);
        serving = serving.beside_or_fail("worker", worker.run(stop));
    }
    Ok(serving)
}
