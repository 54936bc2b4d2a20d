//! What handlers take from a request. Axum's own extractors refuse in plain text; these refuse in OpenAI's shape, and say
//! what the limit is and what helps.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Multipart, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::MAX_BODY_BYTES;
use super::error::{ApiError, parse};

/// A JSON body, whatever content type it says it has.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| unread(&rejection))?;
        parse(&bytes).map(Self)
    }
}

fn unread(rejection: &BytesRejection) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message = format!(
            "the body exceeds the limit of {MAX_BODY_BYTES} bytes; send fewer or shorter texts at once, and rows to \
             train on as a file to /v1/files"
        );
        return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message);
    }
    let message = format!("the body cannot be read: {}; send the request again", rejection.body_text());
    ApiError::new(rejection.status(), message)
}

/// A form with a file in it.
pub struct Form(pub Multipart);

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let form = Multipart::from_request(request, state).await.map_err(|rejection| {
            let message = format!(
                "the body is no form ({}); send multipart/form-data with the fields purpose and file",
                rejection.body_text()
            );
            ApiError::new(StatusCode::BAD_REQUEST, message)
        });
        form.map(Self)
    }
}

/// What follows the question mark.
pub struct Params(pub HashMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<HashMap<String, String>>::from_request_parts(parts, state).await;
        query.map(|Query(params)| Self(params)).map_err(|rejection| {
            let message =
                format!("the query cannot be read: {}; send it as name=value&name=value", rejection.body_text());
            ApiError::new(StatusCode::BAD_REQUEST, message)
        })
    }
}

/// What the path names: a model, a file, a job.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name)).map_err(|rejection| {
            let message = format!("the path cannot be read: {}; write the name in UTF-8", rejection.body_text());
            ApiError::new(rejection.status(), message)
        })
    }
}
