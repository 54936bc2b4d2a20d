//! `/v1/files`: a file is a dataset. Its rows are checked as it comes, so what has an id can be trained on.

use axum::Json;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tailor_pb::common;
use tailor_pb::dataset::{self, upload_dataset_request::Part};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::error::ApiError;
use super::extract::{Form, Name, Params};
use super::listing::Paging;
use super::{Http, new_id};

/// Chunks on their way to the dataset service.
const BUFFER: usize = 8;
/// Below the service's limit of 1 MiB a message.
const CHUNK_BYTES: usize = 512 << 10;
/// Longest form field that is no file.
const MAX_FIELD_BYTES: usize = 256;

pub async fn create(State(http): State<Http>, Form(mut form): Form) -> Result<Json<Value>, ApiError> {
    let mut purpose = None;
    while let Some(field) = form.next_field().await.map_err(|error| broken(&error))? {
        match field.name() {
            Some("purpose") => purpose = Some(text(field).await?),
            Some("file") => {
                // The stock client sends the purpose first; where it comes last, every file is for training anyway.
                check_purpose(purpose.as_deref())?;
                return upload(&http, field).await;
            }
            _ => {}
        }
    }
    Err(ApiError::param("file", "the form has no file"))
}

fn check_purpose(purpose: Option<&str>) -> Result<(), ApiError> {
    match purpose {
        None | Some("fine-tune" | "user_data") => Ok(()),
        Some(other) => {
            Err(ApiError::param("purpose", format!("{other:?} is not served here; files are for \"fine-tune\"")))
        }
    }
}

async fn upload(http: &Http, mut field: Field<'_>) -> Result<Json<Value>, ApiError> {
    let file_name = field.file_name().unwrap_or("rows.jsonl").to_owned();
    let header = dataset::UploadHeader { name: new_id("file"), file_name: file_name.clone(), ..Default::default() };
    let (sender, receiver) = mpsc::channel(BUFFER);
    let part = |part| dataset::UploadDatasetRequest { part: Some(part) };
    let mut client = http.dataset();
    let feed = async move {
        // A service that has refused the file reads no further; what it answers says why.
        let _ = sender.send(part(Part::Header(header))).await;
        while let Some(bytes) = field.chunk().await? {
            for chunk in bytes.chunks(CHUNK_BYTES) {
                if sender.send(part(Part::Chunk(chunk.to_vec()))).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok::<_, MultipartError>(())
    };
    let (fed, answer) = tokio::join!(feed, client.upload_dataset(ReceiverStream::new(receiver)));
    fed.map_err(|error| broken(&error))?;
    let made = answer?.into_inner().dataset.unwrap_or_default();
    let mut card = card(&made);
    card["filename"] = file_name.into();
    Ok(Json(card))
}

async fn text(mut field: Field<'_>) -> Result<String, ApiError> {
    let mut text = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| broken(&error))? {
        text.extend_from_slice(&chunk);
        if text.len() > MAX_FIELD_BYTES {
            return Err(ApiError::new(StatusCode::BAD_REQUEST, format!("a field exceeds {MAX_FIELD_BYTES} bytes")));
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn broken(error: &MultipartError) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, format!("the form cannot be read: {error}"))
}

pub async fn list(State(http): State<Http>, Params(params): Params) -> Result<Json<Value>, ApiError> {
    let paging = Paging::of(&params)?;
    let (mut files, mut token) = (Vec::new(), String::new());
    loop {
        let page = Some(common::Page { size: 1000, token });
        let answer = http.dataset().list_datasets(dataset::ListDatasetsRequest { page }).await?.into_inner();
        files.extend(answer.datasets.iter().map(card));
        token = answer.next_page_token;
        if token.is_empty() {
            return Ok(Json(paging.page(files, 10_000)));
        }
    }
}

pub async fn retrieve(State(http): State<Http>, Name(file): Name) -> Result<Json<Value>, ApiError> {
    let request = dataset::GetDatasetRequest { name: file, version: 0 };
    Ok(Json(card(&http.dataset().get_dataset(request).await?.into_inner())))
}

pub async fn delete(State(http): State<Http>, Name(file): Name) -> Result<Json<Value>, ApiError> {
    http.dataset().delete_dataset(dataset::DeleteDatasetRequest { name: file.clone() }).await?;
    Ok(Json(json!({ "id": file, "object": "file", "deleted": true })))
}

fn card(dataset: &dataset::Dataset) -> Value {
    json!({
        "id": dataset.name, "object": "file", "bytes": dataset.source_size_bytes,
        "created_at": dataset.created_at_ms / 1000, "filename": dataset.name, "purpose": "fine-tune",
        "status": "processed", "status_details": null,
    })
}
