//! Records: JSON objects that are created if absent and never changed.

use bytes::Bytes;
use object_store::{Attribute, Attributes, GetOptions, PutMode, PutOptions, PutPayload};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tailor_domain::Digest;
use ulid::Ulid;

use crate::{Error, Result, Store};

/// Names the attempt that wrote an object, where the backend may repeat a put behind our back.
const ATTEMPT: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("tailor-attempt"));
/// How often a Create that neither won nor found a winner is tried again.
const MAX_TRIES: u32 = 4;

/// What a create-if-absent came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Creation<T> {
    /// This call wrote the object.
    Created,
    /// It was there; this is what it holds.
    AlreadyExists(T),
}

impl<T> Creation<T> {
    pub fn is_created(&self) -> bool {
        matches!(self, Self::Created)
    }
}

impl Store {
    /// Writes a record unless one is there. Of any number of racing calls exactly one is told `Created`.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: unknown whether it was written; the same call may be made again, and then finds its own
    /// record as `AlreadyExists`. [`Error::Full`], [`Error::Refused`], [`Error::InvalidKey`], [`Error::Malformed`] (what
    /// is there is not a `T`).
    pub async fn create_json<T>(&self, key: &str, value: &T) -> Result<Creation<T>>
    where
        T: Serialize + DeserializeOwned,
    {
        match self.create(key, encode(key, value)?).await? {
            None => Ok(Creation::Created),
            Some(existing) => Ok(Creation::AlreadyExists(decode(key, &existing)?)),
        }
    }

    /// Writes bytes of a form of the caller's own unless the key is taken; gives back what it holds if it is.
    ///
    /// # Errors
    /// As [`Store::create_json`], without [`Error::Malformed`].
    pub async fn create_raw(&self, key: &str, bytes: impl Into<Bytes>) -> Result<Option<Bytes>> {
        self.create(key, bytes.into()).await
    }

    /// Reads a record's bytes as they are stored.
    ///
    /// # Errors
    /// As [`Store::get_json`], without [`Error::Malformed`].
    pub async fn get_raw(&self, key: &str) -> Result<Bytes> {
        self.get(key).await
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Malformed`], [`Error::Unavailable`], [`Error::Refused`], [`Error::InvalidKey`].
    pub async fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        decode(key, &self.get(key).await?)
    }

    /// Reads a record if it is there.
    ///
    /// # Errors
    /// As [`Store::get_json`], without [`Error::NotFound`].
    pub async fn find_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        match self.get_json(key).await {
            Ok(value) => Ok(Some(value)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes bytes unless the key is taken; gives back what it holds if it is.
    pub(crate) async fn create(&self, key: &str, bytes: Bytes) -> Result<Option<Bytes>> {
        let path = self.path(key)?;
        let attempt = Ulid::new().to_string();
        let mut last_error = Error::AlreadyExists { key: key.to_owned() };
        for _ in 0..MAX_TRIES {
            let options =
                PutOptions { mode: PutMode::Create, attributes: self.stamp(&attempt), ..PutOptions::default() };
            let put = self.backend.put_opts(&path, PutPayload::from_bytes(bytes.clone()), options).await;
            let Err(error) = put.map_err(|error| self.error(key, error)) else { return Ok(None) };
            // Taken, perhaps by an earlier delivery of this very put; or no answer, and it may have been written. Both
            // are settled by reading back who wrote it. Never by writing again without `Create`.
            let unsettled = matches!(error, Error::AlreadyExists { .. })
                || (self.may_replay && matches!(error, Error::Unavailable { .. }));
            if !unsettled {
                return Err(error);
            }
            match self.read_stamped(key, &path).await {
                Ok((_, Some(writer))) if writer == attempt => return Ok(None),
                Ok((existing, _)) => return Ok(Some(existing)),
                // Refused as taken and yet absent: S3 answers so while another writer is at it.
                Err(Error::NotFound { .. }) => last_error = error,
                Err(_) => return Err(error),
            }
        }
        Err(match last_error {
            Error::AlreadyExists { key } => Error::Unavailable {
                url: self.url().to_owned(),
                key,
                problem: format!("it was reported as taken and as absent {MAX_TRIES} times in a row"),
            },
            other => other,
        })
    }

    fn stamp(&self, attempt: &str) -> Attributes {
        let mut attributes = Attributes::new();
        // Backends that never replay need no stamp, and the local one cannot keep it.
        if self.may_replay {
            attributes.insert(ATTEMPT, attempt.to_owned().into());
        }
        attributes
    }

    async fn read_stamped(&self, key: &str, path: &object_store::path::Path) -> Result<(Bytes, Option<String>)> {
        let read = async {
            let found = self.backend.get_opts(path, GetOptions::default()).await?;
            let writer = found.attributes.get(&ATTEMPT).map(|value| value.to_string());
            Ok((found.bytes().await?, writer))
        };
        read.await.map_err(|error| self.error(key, error))
    }
}

/// The sha256 of a record as [`Store::create_json`] writes it.
///
/// # Errors
/// [`Error::Malformed`]: it cannot be written as JSON.
pub fn record_digest<T: Serialize>(key: &str, value: &T) -> Result<Digest> {
    Ok(Digest::of(&encode(key, value)?))
}

fn encode<T: Serialize>(key: &str, value: &T) -> Result<Bytes> {
    let encoded = serde_json::to_vec(value).map_err(|error| malformed::<T>(key, &error))?;
    Ok(Bytes::from(encoded))
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| malformed::<T>(key, &error))
}

fn malformed<T>(key: &str, error: &serde_json::Error) -> Error {
    let whole = std::any::type_name::<T>();
    let what = whole.rsplit("::").next().unwrap_or(whole).to_owned();
    Error::Malformed { key: key.to_owned(), what, problem: error.to_string() }
}
