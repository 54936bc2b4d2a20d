//! From settings to a store that has been seen to keep its promise.

use tailor_blobs::{Error, S3Options, Store, create_bucket};

use crate::settings::{self, Settings};

/// How the settings say that remote stores are reached.
pub fn options(place: &settings::Store) -> S3Options {
    S3Options {
        endpoint: place.endpoint.clone(),
        region: place.region.clone(),
        access_key_id: place.access_key_id.clone(),
        secret_access_key: place.secret_access_key.clone(),
        allow_http: place.allow_http,
    }
}

/// Opens the store that the settings name and checks that it answers and that its create-if-absent has one winner.
///
/// # Errors
/// A bad address, a store that is away or refuses us or the bucket, or one that lets several writers win.
pub async fn open(settings: &Settings) -> Result<Store, Error> {
    let place = &settings.store;
    let s3 = options(place);
    let store = Store::open(&place.url, &s3)?;
    if place.create_bucket {
        create_bucket(&place.url, &s3).await?;
    }
    // One request first: a store that is away is said so once, not by every racer.
    store.ping().await?;
    store.prove_conditional_create().await?;
    Ok(store)
}
