//! `/v1/files`: a file is a dataset. Its rows are checked as it comes, so what has an id can be trained on.

use axum::Json;
use axum::extract::State;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::http::StatusCode;
use futures::stream::{self, StreamExt as _};
use serde_json::{Value, json};
use tailor_pb::common;
use tailor_pb::dataset::{self, upload_dataset_request::Part};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::error::ApiError;
use super::extract::{Form, Name, Params};
use super::listing::{Order, Paging};
use super::{Http, new_id};

/// What files are for here.
const PURPOSE: &str = "fine-tune";
/// Chunks on their way to the dataset service.
const BUFFER: usize = 8;
/// Below the service's limit of 1 MiB a message.
const CHUNK_BYTES: usize = 512 << 10;
/// Longest form field that is no file.
const MAX_FIELD_BYTES: usize = 256;

pub async fn create(State(http): State<Http>, Form(form): Form) -> Result<Json<Value>, ApiError> {
    let mut made = None;
    match (receive(&http, form, &mut made).await, made) {
        (Ok(()), Some(file)) => Ok(Json(card(&file))),
        (Ok(()), None) => Err(ApiError::param("file", "the form has no file; send the rows as its field file")),
        (Err(error), None) => Err(error),
        // What comes after the file may refuse it too: nothing of it stays.
        (Err(error), Some(file)) => {
            let deleted =
                http.dataset().delete_dataset(dataset::DeleteDatasetRequest { name: file.name.clone() }).await;
            // What was wrong with the form is what its sender can do something about.
            if let Err(status) = deleted {
                tracing::warn!(file = file.name, problem = status.message(), "a file that was refused is left behind");
            }
            Err(error)
        }
    }
}

/// The form's fields as they come; the stock client sends the purpose first.
async fn receive(http: &Http, mut form: Multipart, made: &mut Option<dataset::Dataset>) -> Result<(), ApiError> {
    while let Some(field) = form.next_field().await.map_err(|error| broken(&error))? {
        match field.name() {
            Some("purpose") => check_purpose(&text(field).await?)?,
            Some("file") if made.is_none() => *made = Some(upload(http, field).await?),
            Some("file") => return Err(ApiError::param("file", "the form has two files; send one at a time")),
            other => {
                let name = other.unwrap_or("(none)").to_owned();
                return Err(ApiError::param(&name, format!("the field {name} is not served here; leave it out")));
            }
        }
    }
    Ok(())
}

/// Datasets keep no purpose, so there is one.
fn check_purpose(purpose: &str) -> Result<(), ApiError> {
    if purpose == PURPOSE {
        return Ok(());
    }
    Err(ApiError::param("purpose", format!("{purpose:?} is not served here; files are for \"{PURPOSE}\"")))
}

async fn upload(http: &Http, mut field: Field<'_>) -> Result<dataset::Dataset, ApiError> {
    let file_name = field.file_name().unwrap_or("rows.jsonl").to_owned();
    let header = dataset::UploadHeader { name: new_id("file"), file_name, ..Default::default() };
    let (sender, receiver) = mpsc::channel(BUFFER);
    // A stream that ends is a whole file to the service. One that breaks off, its sender gone, ends with a message that is refused.
    let (whole, is_whole) = oneshot::channel::<()>();
    let broken_off = stream::once(is_whole)
        .filter_map(|whole| std::future::ready(whole.is_err().then(dataset::UploadDatasetRequest::default)));
    let parts = ReceiverStream::new(receiver).chain(broken_off);
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
        // Nobody waits for it where the call has ended.
        let _ = whole.send(());
        Ok::<_, MultipartError>(())
    };
    let (fed, answer) = tokio::join!(feed, client.upload_dataset(parts));
    fed.map_err(|error| broken(&error))?;
    Ok(answer?.into_inner().dataset.unwrap_or_default())
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

/// The newest first, as OpenAI gives them.
pub async fn list(State(http): State<Http>, Params(params): Params) -> Result<Json<Value>, ApiError> {
    let (paging, order) = (Paging::of(&params)?, Order::of(&params)?);
    let mut files = match params.get("purpose") {
        Some(purpose) if purpose != PURPOSE => Vec::new(),
        _ => all(&http).await?,
    };
    files.sort_by(|a, b| (a.created_at_ms, &a.name).cmp(&(b.created_at_ms, &b.name)));
    if order == Order::NewestFirst {
        files.reverse();
    }
    Ok(Json(paging.page(files.iter().map(card).collect(), 10_000)))
}

async fn all(http: &Http) -> Result<Vec<dataset::Dataset>, ApiError> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let page = Some(common::Page { size: 1000, token });
        let answer = http.dataset().list_datasets(dataset::ListDatasetsRequest { page }).await?.into_inner();
        all.extend(answer.datasets);
        token = answer.next_page_token;
        if token.is_empty() {
            return Ok(all);
        }
    }
}

/// Refused: some of a file's rows are held out, and nobody sees their targets before a job has predicted them. A file without
/// them would not be the one that was uploaded.
pub async fn content(State(http): State<Http>, Name(file): Name) -> Result<Json<Value>, ApiError> {
    let dataset = http.dataset().get_dataset(dataset::GetDatasetRequest { name: file, version: 0 }).await?.into_inner();
    let message = format!(
        "file {} is not given back: the targets of its {} held-out rows stay hidden; `tailor dataset preview {0}` shows \
         rows that are trained on",
        dataset.name, dataset.rows_validation
    );
    Err(ApiError::new(StatusCode::BAD_REQUEST, message))
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
    // Uploaded before names were kept.
    let file_name = if dataset.file_name.is_empty() { &dataset.name } else { &dataset.file_name };
    json!({
        "id": dataset.name, "object": "file", "bytes": dataset.source_size_bytes,
        "created_at": dataset.created_at_ms / 1000, "filename": file_name, "purpose": PURPOSE,
        "status": "processed", "status_details": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_the_name_that_its_uploader_gave_it() {
        let kept = dataset::Dataset { name: "file-1".into(), file_name: "rows.jsonl".into(), ..Default::default() };
        assert_eq!(card(&kept)["filename"], "rows.jsonl");
        let old = dataset::Dataset { name: "file-1".into(), ..Default::default() };
        assert_eq!((&card(&old)["filename"], &card(&old)["purpose"]), (&json!("file-1"), &json!("fine-tune")));
    }
}
