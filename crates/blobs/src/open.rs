//! From a settings URL to a store.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use crate::{Error, Result, Store, azure, gcs, validate_key};

/// How to reach a remote store. What is left out comes from the usual environment variables of its kind: `AWS_…`, `GOOGLE_…`,
/// `AZURE_…`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct S3Options {
    /// e.g. `http://127.0.0.1:9000`; without it, AWS itself.
    pub endpoint: Option<String>,
    /// S3 only.
    pub region: Option<String>,
    /// For Azure, the account's name; Google takes none.
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    /// Whether plain `http://` endpoints are allowed.
    pub allow_http: bool,
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key_id)
            .field("secret_access_key", &self.secret_access_key.as_ref().map(|_| "…"))
            .field("allow_http", &self.allow_http)
            .finish()
    }
}

impl Store {
    /// Opens `file:///folder`, a plain folder, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `memory://`
    /// (each time a new, empty one).
    /// A local folder is made if absent; a remote store is not contacted: see [`Store::prove_conditional_create`].
    ///
    /// # Errors
    /// [`Error::BadAddress`]; for a folder also [`Error::Unavailable`], [`Error::Refused`], [`Error::Full`].
    pub fn open(url: &str, s3: &S3Options) -> Result<Self> {
        let bad = |problem: &str| Error::BadAddress { url: url.to_owned(), problem: problem.to_owned() };
        match url.split_once("://") {
            Some(("memory", "")) => Ok(Self::memory()),
            Some(("memory", _)) => Err(bad("memory:// takes no path")),
            Some(("file", path)) if path.starts_with('/') => open_folder(url, Path::new(path)),
            Some(("file", _)) => Err(bad("the folder must be absolute: file:///folder")),
            Some(("s3", place)) => open_s3(url, place, s3),
            Some(("gs", place)) => gcs::open(url, place, s3),
            Some(("az", place)) => azure::open(url, place, s3),
            Some((scheme, _)) => Err(bad(&format!("{scheme}:// is not supported"))),
            None if url.is_empty() => Err(bad("it is empty")),
            None => open_folder(url, Path::new(url)),
        }
    }

    /// A store that lives and dies with this process.
    pub fn memory() -> Self {
        Self::over(Arc::new(InMemory::new()), "memory://")
    }
}

fn open_folder(url: &str, folder: &Path) -> Result<Store> {
    let unusable = |error: &std::io::Error| {
        let problem = format!("folder {}: {error}", folder.display());
        let (url, key) = (url.to_owned(), "its folder".to_owned());
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Error::Refused { url, key, problem },
            std::io::ErrorKind::StorageFull => Error::Full { key: url, problem },
            _ => Error::Unavailable { url, key, problem },
        }
    };
    std::fs::create_dir_all(folder).map_err(|error| unusable(&error))?;
    let folder: PathBuf = folder.canonicalize().map_err(|error| unusable(&error))?;
    let backend = LocalFileSystem::new_with_prefix(&folder)
        .map_err(|error| crate::classify::backend_error(url, "its folder", error))?
        .with_fsync(true)
        .with_automatic_cleanup(true);
    Ok(Store::over(Arc::new(backend), &format!("file://{}", folder.display())))
}

fn open_s3(url: &str, place: &str, options: &S3Options) -> Result<Store> {
    let (backend, prefix) = s3_backend(url, place, options)?;
    let name = match &options.endpoint {
        Some(endpoint) => format!("s3://{place} at {endpoint}"),
        None => format!("s3://{place}"),
    };
    let backend = Arc::new(backend);
    Ok(Store::over(backend.clone(), &name).with_root(prefix).with_replays().with_signer(backend))
}

/// The client for the bucket of `place`, which is `bucket` or `bucket/prefix`, and the prefix.
pub(crate) fn s3_backend<'a>(url: &str, place: &'a str, options: &S3Options) -> Result<(AmazonS3, &'a str)> {
    let Place { bucket, prefix } = Place::parse(url, place, options)?;
    let (client, retry) = (client_options(options), retry());
    let mut builder =
        AmazonS3Builder::from_env().with_client_options(client).with_retry(retry).with_bucket_name(bucket);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(key) = &options.access_key_id {
        builder = builder.with_access_key_id(key);
    }
    if let Some(secret) = &options.secret_access_key {
        builder = builder.with_secret_access_key(secret);
    }
    let backend = builder.build().map_err(|error| bad_address(url, error.to_string()))?;
    Ok((backend, prefix))
}

/// `bucket` or `bucket/prefix`.
pub(crate) struct Place<'a> {
    pub bucket: &'a str,
    pub prefix: &'a str,
}

impl<'a> Place<'a> {
    /// Takes the address apart and checks what is the same for every remote store.
    pub fn parse(url: &str, place: &'a str, options: &S3Options) -> Result<Self> {
        let bad = |problem: String| bad_address(url, problem);
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.trim_end_matches('/');
        if bucket.is_empty() {
            return Err(bad("the bucket is missing".into()));
        }
        if !prefix.is_empty() {
            validate_key(prefix).map_err(|error| bad(error.to_string()))?;
        }
        let is_http = options.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        if is_http && !options.allow_http {
            return Err(bad("its endpoint is plain http; allow that in the settings, or use https".into()));
        }
        Ok(Self { bucket, prefix })
    }
}

pub(crate) fn bad_address(url: &str, problem: String) -> Error {
    Error::BadAddress { url: url.to_owned(), problem }
}

pub(crate) fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 4,
        retry_timeout: Duration::from_secs(15),
    }
}

/// Long enough for a slow store, short enough that a store that is away is reported while somebody still waits.
pub(crate) fn client_options(options: &S3Options) -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(3))
        .with_timeout(Duration::from_secs(60))
        .with_allow_http(options.allow_http)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_address_says_how_to_write_one() {
        for bad in ["", "ftp://x/y", "file://relative", "s3://", "s3://b/../x", "s3://b/UPPER", "memory://x"] {
            let error = Store::open(bad, &S3Options::default()).expect_err(bad);
            assert!(matches!(error, Error::BadAddress { .. }), "{bad}: {error}");
            assert!(error.to_string().contains("s3://bucket/prefix"), "{error}");
        }
    }

    #[test]
    fn plain_http_must_be_allowed() {
        let options = S3Options { endpoint: Some("http://127.0.0.1:9".into()), ..S3Options::default() };
        let error = Store::open("s3://bucket", &options).expect_err("plain http");
        assert!(error.to_string().contains("plain http"), "{error}");
    }

    #[test]
    fn a_secret_is_not_printed() {
        let options = S3Options { secret_access_key: Some("hunter2".into()), ..S3Options::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
