//! Making the bucket: for the first start on an object store of one's own, which is empty.

use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::{Method, Request, StatusCode};
use object_store::aws::AmazonS3;
use object_store::client::{HttpConnector as _, HttpErrorKind, HttpRequestBody, ReqwestConnector};
use object_store::path::Path;
use object_store::signer::Signer as _;

use crate::open::{client_options, s3_backend};
use crate::{Error, Result, S3Options};

/// How long the signed request for the bucket is valid.
const SIGNED_FOR: Duration = Duration::from_secs(60);

/// Makes the bucket of an `s3://` address unless it is there; nothing to do for any other address. Several services may
/// do this at once. In a region of AWS other than us-east-1, make the bucket with AWS' own tools.
///
/// # Errors
/// [`Error::BadAddress`], [`Error::Unavailable`], and [`Error::Refused`] where the key may not make buckets.
pub async fn create_bucket(url: &str, s3: &S3Options) -> Result<()> {
    let Some(place) = url.strip_prefix("s3://") else { return Ok(()) };
    let (backend, _) = s3_backend(url, place, s3)?;
    let key = "its bucket".to_owned();
    let at = match &s3.endpoint {
        Some(endpoint) => format!("{url} at {endpoint}"),
        None => url.to_owned(),
    };
    match put_bucket(&backend, s3).await {
        // Conflict: it is there, or another service is making it now.
        Ok(StatusCode::OK | StatusCode::CONFLICT) => Ok(()),
        Ok(status) if status.is_server_error() => Err(Error::Unavailable { url: at, key, problem: status.to_string() }),
        Ok(status) => Err(Error::Refused { url: at, key, problem: format!("it cannot be made: {status}") }),
        Err(problem) => Err(Error::Unavailable { url: at, key, problem }),
    }
}

/// `PUT /bucket`. object_store knows no such call, but signs any request under a bucket, and the empty path is the
/// bucket itself. The signed address is a credential, so no message may hold it.
async fn put_bucket(backend: &AmazonS3, s3: &S3Options) -> Result<StatusCode, String> {
    let signed = backend
        .signed_url(Method::PUT, &Path::default(), SIGNED_FOR)
        .await
        .map_err(|error| format!("the request for it cannot be signed: {error}"))?;
    let client = ReqwestConnector::default().connect(&client_options(s3)).map_err(|error| error.to_string())?;
    let request = Request::builder()
        .method(Method::PUT)
        .uri(signed.as_str())
        // An empty body sends no length of its own, and some servers insist on one.
        .header(CONTENT_LENGTH, 0)
        .body(HttpRequestBody::empty())
        .map_err(|error| error.to_string())?;
    let answer = client.execute(request).await.map_err(|error| match error.kind() {
        HttpErrorKind::Connect => "connection refused".to_owned(),
        HttpErrorKind::Timeout => "no answer in time".to_owned(),
        _ => "the connection broke".to_owned(),
    })?;
    Ok(answer.status())
}
