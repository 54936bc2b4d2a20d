//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tailor_domain::{ErrorCode, Invalid};
use tailor_serverkit::Coded as _;
use tailor_serverkit::status::{code_of, is_too_large};
use tonic_types::StatusExt as _;

use crate::error::Error;

#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// Of a field of the request.
    pub fn param(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A field that is not served here, given. `null` and what is empty say nothing, and are taken.
    pub fn unserved(field: &str, given: &Value, remedy: &str) -> Result<(), Self> {
        let says_nothing = match given {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        };
        if says_nothing {
            return Ok(());
        }
        Err(Self::param(field, format!("{field} is not served here; {remedy}")))
    }

    pub fn no_model(model: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("The model `{model}` does not exist: {why}");
        let error = Self { code: Some("model_not_found"), ..Self::new(StatusCode::NOT_FOUND, message) };
        Self { param: Some("model".into()), ..error }
    }

    pub fn body(&self) -> Value {
        let error = json!({
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        });
        json!({ "error": error })
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn of(code: ErrorCode, message: String) -> Self {
        let status = match code {
            ErrorCode::InvalidArgument | ErrorCode::FailedPrecondition => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::AlreadyExists | ErrorCode::Aborted => StatusCode::CONFLICT,
            ErrorCode::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
            ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
            ErrorCode::Cancelled => StatusCode::REQUEST_TIMEOUT,
            ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::DataLoss | ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status.is_server_error() {
            tracing::error!(error = message, ?code, "an HTTP request failed");
        }
        let code = (code == ErrorCode::ResourceExhausted).then_some("rate_limit_exceeded");
        Self { code, ..Self::new(status, message) }
    }
}

impl ApiError {
    pub fn from_ref(error: &Error) -> Self {
        let param = match error {
            Error::Invalid(invalid) => Some(invalid.field.clone()),
            _ => None,
        };
        Self { param, retry_after: error.retry_after(), ..Self::of(error.code(), error.to_string()) }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::from_ref(&error)
    }
}

impl From<Invalid> for ApiError {
    fn from(error: Invalid) -> Self {
        Error::from(error).into()
    }
}

impl From<tonic::Status> for ApiError {
    fn from(status: tonic::Status) -> Self {
        // To wait and send it again, which is what 429 asks for, would be in vain.
        if is_too_large(&status) {
            return Self::new(StatusCode::PAYLOAD_TOO_LARGE, status.message());
        }
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        Self { retry_after, ..Self::of(code_of(&status), status.message().to_owned()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(wait) = self.retry_after {
            let seconds = HeaderValue::from(wait.as_secs_f64().ceil() as u64);
            response.headers_mut().insert("retry-after", seconds);
        }
        response
    }
}

/// A JSON body, or what is wrong with it by field.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use tailor_serverkit::{spool, status};

    use super::*;

    #[test]
    fn a_file_over_the_limit_is_too_large_and_a_full_disk_is_not_the_files_fault() {
        let large = spool::Error::TooLarge { limit_bytes: 9, setting: "dataset.max_upload_bytes" };
        let refused = ApiError::from(status(&large));
        let error = refused.body()["error"].clone();
        assert_eq!((&error["type"], &error["code"]), (&json!("invalid_request_error"), &Value::Null));
        assert!(error["message"].as_str().is_some_and(|said| said.contains("limit of 9 bytes")), "{error}");
        assert_eq!(refused.into_response().status(), 413);
        let full = spool::Error::Full { folder: "/spool".into(), problem: "no space".into() };
        assert_eq!(ApiError::from(status(&full)).into_response().status(), 429);
    }
}
