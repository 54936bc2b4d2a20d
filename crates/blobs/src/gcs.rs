//! Google Cloud Storage: `gs://bucket/prefix`. Credentials come from the usual `GOOGLE_…` variables (a service account's file or
//! key, or what the machine is known as).

use std::sync::Arc;

use object_store::gcp::GoogleCloudStorageBuilder;

use crate::open::{Place, bad_address, client_options, retry};
use crate::{Result, S3Options, Store};

pub(crate) fn open(url: &str, place: &str, options: &S3Options) -> Result<Store> {
    let Place { bucket, prefix } = Place::parse(url, place, options)?;
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_client_options(client_options(options))
        .with_retry(retry())
        .with_bucket_name(bucket);
    let mut name = format!("gs://{place}");
    if let Some(endpoint) = &options.endpoint {
        name = format!("{name} at {endpoint}");
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
        // A server of one's own knows no Google account.
        let has_credentials = std::env::vars_os().any(|(key, _)| key.to_string_lossy().starts_with("GOOGLE_"));
        builder = builder.with_skip_signature(!has_credentials);
    }
    let backend = builder.build().map_err(|error| bad_address(url, error.to_string()))?;
    Ok(Store::over(Arc::new(backend), &name).with_root(prefix).with_replays())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_google_is_a_bucket_and_a_prefix() {
        let options =
            S3Options { endpoint: Some("http://127.0.0.1:9".into()), allow_http: true, ..S3Options::default() };
        let store = Store::open("gs://bucket/a/prefix", &options).expect("open");
        assert_eq!(store.url(), "gs://bucket/a/prefix at http://127.0.0.1:9");
        for bad in ["gs://", "gs://bucket/../x", "gs://bucket/UPPER"] {
            assert!(Store::open(bad, &options).is_err(), "{bad}");
        }
    }
}
