//! Azure Blob Storage: `az://container/prefix`. The account's name and key come from the settings (`access_key_id`,
//! `secret_access_key`) or the usual `AZURE_STORAGE_…` variables, which know the other ways to sign in as well.

use std::sync::Arc;

use object_store::azure::MicrosoftAzureBuilder;

use crate::open::{Place, bad_address, client_options, retry};
use crate::{Result, S3Options, Store};

pub(crate) fn open(url: &str, place: &str, options: &S3Options) -> Result<Store> {
    let Place { bucket, prefix } = Place::parse(url, place, options)?;
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_client_options(client_options(options))
        .with_retry(retry())
        .with_container_name(bucket);
    let mut name = format!("az://{place}");
    if let Some(account) = &options.access_key_id {
        builder = builder.with_account(account);
    }
    if let Some(key) = &options.secret_access_key {
        builder = builder.with_access_key(key);
    }
    if let Some(endpoint) = &options.endpoint {
        name = format!("{name} at {endpoint}");
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned()).with_allow_http(options.allow_http);
    }
    let backend = builder.build().map_err(|error| bad_address(url, error.to_string()))?;
    Ok(Store::over(Arc::new(backend), &name).with_root(prefix).with_replays())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_azure_needs_an_account() {
        let account = S3Options {
            access_key_id: Some("account".into()),
            // The base64 of nothing in particular.
            secret_access_key: Some("a2V5".into()),
            ..S3Options::default()
        };
        let store = Store::open("az://container/prefix", &account).expect("open");
        assert_eq!(store.url(), "az://container/prefix");
        assert!(Store::open("az://", &account).is_err());
        let damaged = S3Options { secret_access_key: Some("no base64!".into()), ..account };
        let error = Store::open("az://container", &damaged).expect_err("no key").to_string();
        assert!(!error.contains("no base64!"), "{error}");
    }
}
