//! The handle: a backend, a prefix in it, and the plain operations. Blobs, records and logs are in their own files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::classify::backend_error;
use crate::{Error, Result, gc, validate_key};

/// A place for objects. Cheap to clone; clones share the backend.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) backend: Arc<dyn ObjectStore>,
    /// Put before every key; empty or a path of valid components.
    root: String,
    /// What a person calls this store, without secrets; for messages.
    url: Arc<str>,
    /// Whether a put may be repeated behind our back (HTTP retries), so that a Create can be told it lost against itself.
    pub(crate) may_replay: bool,
    /// What makes addresses that anybody may read for a while, where the backend can.
    pub(crate) signer: Option<Arc<dyn object_store::signer::Signer>>,
    /// Where each log was last seen to end. Only hints: a wrong one costs requests, never correctness.
    pub(crate) tails: Arc<Mutex<HashMap<String, u64>>>,
    /// What is known of the open round of collection.
    pub(crate) rounds: gc::Rounds,
}

/// What lies directly under a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Children {
    /// Names of the folders, sorted.
    pub folders: Vec<String>,
    /// Names of the objects, sorted.
    pub objects: Vec<String>,
}

impl Store {
    /// A store over any backend, e.g. one that injects faults. `url` is for messages.
    pub fn over(backend: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self {
            backend,
            root: String::new(),
            url: url.into(),
            may_replay: false,
            signer: None,
            tails: Arc::default(),
            rounds: gc::Rounds::default(),
        }
    }

    pub(crate) fn with_root(mut self, root: &str) -> Self {
        root.clone_into(&mut self.root);
        self
    }

    /// For a backend whose client may send a put twice: each Create then carries a name of its own attempt, and one that
    /// seems to have lost reads back whether it lost against itself.
    pub fn with_replays(mut self) -> Self {
        self.may_replay = true;
        self
    }

    /// The backend, for another handle that has read and remembered nothing yet.
    pub fn backend(&self) -> Arc<dyn ObjectStore> {
        self.backend.clone()
    }

    /// What a person calls this store.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether an object is there.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], [`Error::Unavailable`], [`Error::Refused`].
    pub async fn exists(&self, key: &str) -> Result<bool> {
        Ok(self.size(key).await?.is_some())
    }

    /// The object's size in bytes, if it is there.
    ///
    /// # Errors
    /// As [`Store::exists`].
    pub async fn size(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key)?;
        match self.backend.head(&path).await.map_err(|error| self.error(key, error)) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the store answers: looks for an object that is never there.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`].
    pub async fn ping(&self) -> Result<()> {
        self.size("probe/ping").await.map(drop)
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Bytes> {
        let path = self.path(key)?;
        let found = async { self.backend.get(&path).await?.bytes().await };
        found.await.map_err(|error| self.error(key, error))
    }

    /// All keys under a prefix, at any depth, sorted.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], [`Error::Unavailable`], [`Error::Refused`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let path = self.path(prefix)?;
        self.collect(prefix, self.backend.list(Some(&path))).await
    }

    /// The keys under a prefix that sort after `start_after` (a whole key), sorted.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_from(&self, prefix: &str, start_after: &str) -> Result<Vec<String>> {
        let path = self.path(prefix)?;
        let offset = self.path(start_after)?;
        self.collect(prefix, self.backend.list_with_offset(Some(&path), &offset)).await
    }

    async fn collect(
        &self,
        prefix: &str,
        found: futures::stream::BoxStream<'_, object_store::Result<object_store::ObjectMeta>>,
    ) -> Result<Vec<String>> {
        let mut keys: Vec<String> = found
            .try_filter_map(|meta| std::future::ready(Ok(self.key_of(&meta.location))))
            .try_collect()
            .await
            .map_err(|error| self.error(prefix, error))?;
        keys.sort_unstable();
        Ok(keys)
    }

    /// The names directly under a prefix: folders and objects apart. An absent prefix has none.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_children(&self, prefix: &str) -> Result<Children> {
        let path = self.path(prefix)?;
        let found = self.backend.list_with_delimiter(Some(&path)).await.map_err(|error| self.error(prefix, error))?;
        let last = |path: &Path| path.filename().map(ToOwned::to_owned);
        let mut children = Children {
            folders: found.common_prefixes.iter().filter_map(last).collect(),
            objects: found.objects.iter().filter_map(|meta| last(&meta.location)).collect(),
        };
        children.folders.sort_unstable();
        children.objects.sort_unstable();
        Ok(children)
    }

    /// The top folders.
    pub(crate) async fn folders(&self) -> Result<Vec<String>> {
        let root = Path::parse(&self.root).map_err(|error| self.error(&self.root, error.into()))?;
        let found = self.backend.list_with_delimiter(Some(&root)).await;
        let found = found.map_err(|error| self.error("its top folder", error))?;
        Ok(found.common_prefixes.iter().filter_map(|path| path.filename().map(ToOwned::to_owned)).collect())
    }

    /// Deletes an object; one that is not there is deleted already.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], [`Error::Unavailable`], [`Error::Refused`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match self.backend.delete(&path).await.map_err(|error| self.error(key, error)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn path(&self, key: &str) -> Result<Path> {
        validate_key(key)?;
        let whole = if self.root.is_empty() { key.to_owned() } else { format!("{}/{key}", self.root) };
        Path::parse(&whole).map_err(|error| Error::InvalidKey { key: key.to_owned(), problem: error.to_string() })
    }

    /// The key of a path of ours; `None` for what we would never write.
    fn key_of(&self, path: &Path) -> Option<String> {
        let whole = path.as_ref();
        let key = if self.root.is_empty() { whole } else { whole.strip_prefix(&self.root)?.strip_prefix('/')? };
        validate_key(key).is_ok().then(|| key.to_owned())
    }

    pub(crate) fn error(&self, key: &str, error: object_store::Error) -> Error {
        backend_error(&self.url, key, error)
    }
}
