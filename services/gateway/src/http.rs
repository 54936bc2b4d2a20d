//! OpenAI's API over HTTP, on the same port as gRPC: the stock client uploads rows, trains, watches and asks.
//!
//! A file is a dataset, a fine-tuning job is a training job, a model is a base or `base:adapter[@version|@alias]` (`ft:` may
//! stand before it). What OpenAI's API has and Tailor has not is refused by name, never ignored in silence where it would
//! change the answer.

mod chat;
mod completions;
mod error;
mod extract;
mod files;
mod jobs;
mod listing;
mod models;
mod ready;
mod shape;
mod stream;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tailor_pb::dataset::dataset_service_client::DatasetServiceClient;
use tailor_pb::training::training_service_client::TrainingServiceClient;
use tailor_serverkit::client::Client;
use tailor_serverkit::server::Hindrances;
use tailor_serverkit::settings::GatewayRole;
use tailor_serverkit::{Settings, connect, server};

use self::error::ApiError;
use crate::error::Result;
use crate::models::Models;
use crate::rollout::Rollouts;

/// Largest JSON body.
const MAX_BODY_BYTES: usize = 4 << 20;

#[derive(Clone)]
struct Http {
    rollouts: Arc<Rollouts>,
    dataset: Client,
    trainer: Client,
}

impl Http {
    fn models(&self) -> &Models {
        self.rollouts.models()
    }

    fn dataset(&self) -> DatasetServiceClient<Client> {
        DatasetServiceClient::new(self.dataset.clone()).max_decoding_message_size(server::max_message_bytes())
    }

    fn trainer(&self) -> TrainingServiceClient<Client> {
        TrainingServiceClient::new(self.trainer.clone()).max_decoding_message_size(server::max_message_bytes())
    }
}

/// An engine answers edges; of HTTP it only says whether it is ready.
///
/// # Errors
/// The address of the dataset or training service cannot be one.
pub fn routes(rollouts: Arc<Rollouts>, hindrances: Hindrances, settings: &Settings) -> Result<Router> {
    if settings.gateway.role == GatewayRole::Engine {
        return Ok(ready::routes(hindrances).method_not_allowed_fallback(wrong_method).fallback(unknown));
    }
    let token = settings.auth.token.as_deref();
    let http = Http {
        rollouts,
        dataset: connect("dataset", &settings.services.dataset, token)?,
        trainer: connect("trainer", &settings.services.trainer, token)?,
    };
    // Files stream through and are bounded by the dataset service.
    let files =
        Router::new().route("/v1/files", post(files::create).get(files::list)).layer(DefaultBodyLimit::disable());
    Ok(Router::new()
        .route("/v1/models", get(models::list))
        // A name with a slash in it is no model's, and is told so as any other.
        .route("/v1/models/{*model}", get(models::retrieve))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/files/{file}", get(files::retrieve).delete(files::delete))
        .route("/v1/files/{file}/content", get(files::content))
        .route("/v1/fine_tuning/jobs", post(jobs::create).get(jobs::list))
        .route("/v1/fine_tuning/jobs/{job}", get(jobs::retrieve))
        .route("/v1/fine_tuning/jobs/{job}/cancel", post(jobs::cancel))
        .route("/v1/fine_tuning/jobs/{job}/pause", post(jobs::pause))
        .route("/v1/fine_tuning/jobs/{job}/resume", post(jobs::resume))
        .route("/v1/fine_tuning/jobs/{job}/events", get(jobs::events))
        .route("/v1/fine_tuning/jobs/{job}/checkpoints", get(jobs::checkpoints))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .merge(files)
        .merge(ready::routes(hindrances))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown)
        .with_state(http))
}

/// A gRPC method that nobody has, or a path of OpenAI's that Tailor has not.
async fn unknown(method: axum::http::Method, uri: axum::http::Uri, headers: HeaderMap) -> Response {
    let kind = headers.get("content-type").map(|value| value.as_bytes());
    if kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
        let status = tonic::Status::unimplemented(format!("{} is no method of this service", uri.path()));
        return status.into_http::<axum::body::Body>().into_response();
    }
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {method} {}", uri.path())).into_response()
}

/// The header `Allow` is axum's to add.
async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    let message = format!("{} is not asked by {method}; the header Allow names what it is asked by", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn new_id(prefix: &str) -> String {
    format!("{prefix}-{}", ulid::Ulid::new().to_string().to_lowercase())
}

#[cfg(test)]
mod tests;
