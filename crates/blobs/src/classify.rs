//! From a backend's error to ours: the cause class, and a message without the backend's noise.

use std::error::Error as StdError;
use std::io;

use object_store::Error as Backend;

use crate::Error;

/// What `url` said about `key`.
pub(crate) fn backend_error(url: &str, key: &str, error: Backend) -> Error {
    let (url, key) = (url.to_owned(), key.to_owned());
    let problem = innermost(&error);
    // S3 answers 404 for a missing bucket too; that is no statement about the object.
    if problem.contains("NoSuchBucket") {
        return Error::Refused { url, key, problem: "the bucket does not exist".into() };
    }
    // Signed requests carry the time. Clocks get set right again, so this is no refusal for good.
    if problem.contains("RequestTimeTooSkewed") {
        let problem = "this host's clock and the store's are too far apart; set the clock".to_owned();
        return Error::Unavailable { url, key, problem };
    }
    if is_full(&error) || problem.contains("507 Insufficient Storage") {
        return Error::Full { key, problem };
    }
    match error {
        Backend::NotFound { .. } => Error::NotFound { key },
        Backend::AlreadyExists { .. } | Backend::Precondition { .. } => Error::AlreadyExists { key },
        Backend::InvalidPath { .. } => Error::InvalidKey { key, problem },
        Backend::PermissionDenied { .. } | Backend::Unauthenticated { .. } => Error::Refused { url, key, problem },
        Backend::NotSupported { .. } | Backend::NotImplemented { .. } => Error::Unfit { url, problem },
        _ if has_io_kind(&error, io::ErrorKind::PermissionDenied) => Error::Refused { url, key, problem },
        _ => Error::Unavailable { url, key, problem },
    }
}

/// A file operation of ours outside the store.
pub(crate) fn file_error(path: &std::path::Path, error: &io::Error) -> Error {
    let path = path.display().to_string();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::Full { key: path, problem: error.to_string() }
        }
        _ => Error::File { path, problem: error.to_string() },
    }
}

fn is_full(error: &Backend) -> bool {
    has_io_kind(error, io::ErrorKind::StorageFull) || has_io_kind(error, io::ErrorKind::QuotaExceeded)
}

fn has_io_kind(error: &(dyn StdError + 'static), kind: io::ErrorKind) -> bool {
    chain(error).any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == kind))
}

/// The last cause that says something, on one line and bounded: backends nest the same sentence several times.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    const MAX_CHARS: usize = 300;
    let text = chain(error).map(ToString::to_string).filter(|text| !text.is_empty()).last().unwrap_or_default();
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_CHARS) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: io::Error) -> Backend {
        Backend::Generic { store: "test", source: Box::new(source) }
    }

    #[test]
    fn a_full_disk_is_told_from_a_store_that_is_away() {
        let full = backend_error("file:///s", "jobs/a", generic(io::Error::from_raw_os_error(28)));
        assert!(matches!(full, Error::Full { .. }), "{full}");
        let away = backend_error("file:///s", "jobs/a", generic(io::Error::from_raw_os_error(5)));
        assert!(matches!(away, Error::Unavailable { .. }) && away.retryable(), "{away}");
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        let missing = Backend::NotFound { path: "k".into(), source: "404: <Code>NoSuchBucket</Code>".into() };
        let error = backend_error("s3://b", "k", missing);
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    }

    #[test]
    fn a_clock_that_is_off_is_named_and_can_be_tried_again() {
        let skewed =
            Backend::PermissionDenied { path: "k".into(), source: "403: <Code>RequestTimeTooSkewed</Code>".into() };
        let error = backend_error("s3://b", "k", skewed);
        assert!(error.retryable() && error.to_string().contains("set the clock"), "{error}");
    }

    #[test]
    fn a_message_is_one_bounded_line() {
        let long = generic(io::Error::other("x\n".repeat(10_000)));
        let text = backend_error("s3://b", "k", long).to_string();
        assert!(text.len() < 600 && !text.contains('\n'), "{text}");
    }
}
