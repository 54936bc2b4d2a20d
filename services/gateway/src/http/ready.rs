//! `/readyz`: what `grpc.health.v1` says, for those who speak HTTP, with the reasons. It asks for no token.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tailor_serverkit::server::Hindrances;

pub fn routes<S: Clone + Send + Sync + 'static>(hindrances: Hindrances) -> Router<S> {
    Router::new().route("/readyz", get(ready)).with_state(hindrances)
}

async fn ready(State(hindrances): State<Hindrances>) -> Response {
    let why = hindrances.borrow().clone();
    let status = if why.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": why.is_empty(), "hindrances": why }))).into_response()
}
