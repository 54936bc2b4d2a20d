//! Objects that are somebody else's: read once, by their own address, and never written.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures::StreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt as _};

use crate::classify::backend_error;
use crate::open::bad_address;
use crate::{BlobStream, Error, Result, S3Options, Store};

/// Of one request.
const PIECE_BYTES: u64 = 16 << 20;

/// The address of one object: `s3://bucket/key`, `gs://bucket/key`, `az://container/key` or `file:///path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectUrl {
    url: String,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Bucket { bucket: String, key: Path },
    File(PathBuf),
}

/// An object that is there.
pub struct Found {
    pub size_bytes: u64,
    pub pieces: BlobStream,
}

impl ObjectUrl {
    /// # Errors
    /// [`Error::BadAddress`]
    pub fn parse(url: &str) -> Result<Self> {
        let bad = |problem: &str| bad_address(url, problem.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it names no scheme"))?;
        let place = match scheme {
            "s3" | "gs" | "az" => {
                let (bucket, key) = rest.split_once('/').ok_or_else(|| bad("it names a bucket and no object in it"))?;
                let key = Path::parse(key).map_err(|error| bad(&error.to_string()))?;
                if bucket.is_empty() || key.as_ref().is_empty() {
                    return Err(bad("it needs a bucket and an object's key"));
                }
                Place::Bucket { bucket: format!("{scheme}://{bucket}"), key }
            }
            "file" if rest.starts_with('/') => Place::File(PathBuf::from(rest)),
            "file" => return Err(bad("the path must be absolute: file:///path")),
            other => return Err(bad(&format!("{other}:// is not supported"))),
        };
        Ok(Self { url: url.to_owned(), place })
    }

    /// `s3`, `gs`, `az` or `file`.
    pub fn scheme(&self) -> &str {
        self.url.split_once("://").map_or("", |(scheme, _)| scheme)
    }

    /// What stands behind the last slash.
    pub fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it is below `place`: `s3://bucket`, `s3://bucket/prefix`, `file:///folder`. A file is so where it really lies.
    pub fn is_in(&self, place: &str) -> bool {
        match &self.place {
            Place::Bucket { .. } => {
                let below = self.url.strip_prefix(place.trim_end_matches('/'));
                !place.is_empty() && below.is_some_and(|rest| rest.starts_with('/'))
            }
            Place::File(path) => {
                let Some(folder) = place.strip_prefix("file://") else { return false };
                let Ok(folder) = FilePath::new(folder).canonicalize() else { return false };
                // One that is not there is where it would be, so that it can be said to be absent.
                let parent = || path.parent()?.canonicalize().ok();
                let place = path.canonicalize().ok().or_else(|| parent().filter(|_| path.file_name().is_some()));
                place.is_some_and(|place| place.starts_with(folder))
            }
        }
    }

    /// Looks the object up; nothing of it is read yet.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`], [`Error::Refused`]; all also as items of the stream.
    pub async fn open(&self, options: &S3Options) -> Result<Found> {
        let (backend, of, key): (Arc<dyn ObjectStore>, String, Path) = match &self.place {
            Place::Bucket { bucket, key } => {
                let store = Store::open(bucket, options)?;
                (store.backend(), store.url().to_owned(), key.clone())
            }
            Place::File(path) => {
                let key = Path::from_absolute_path(path).map_err(|error| bad_address(&self.url, error.to_string()))?;
                (Arc::new(LocalFileSystem::new()), "file://".to_owned(), key)
            }
        };
        let (of, name): (Arc<str>, Arc<str>) = (of.into(), self.url.as_str().into());
        let meta = backend.head(&key).await.map_err(|error| backend_error(&of, &name, error))?;
        let size_bytes = meta.size;
        // Piece by piece, since a request may take no longer than a minute; all of what it was when it was looked up.
        let pieces = futures::stream::try_unfold(0, move |at| {
            let (backend, key, of, name) = (backend.clone(), key.clone(), of.clone(), name.clone());
            let if_match = meta.e_tag.clone();
            async move {
                let end = meta.size.min(at + PIECE_BYTES);
                if at == end {
                    return Ok(None);
                }
                let options = GetOptions { range: Some((at..end).into()), if_match, ..GetOptions::default() };
                let piece = async { backend.get_opts(&key, options).await?.bytes().await };
                let piece = piece.await.map_err(|error| match error {
                    object_store::Error::Precondition { .. } => Error::Unavailable {
                        url: of.to_string(),
                        key: name.to_string(),
                        problem: "it was written anew while it was read".into(),
                    },
                    other => backend_error(&of, &name, other),
                })?;
                Ok(Some((piece, end)))
            }
        });
        Ok(Found { size_bytes, pieces: pieces.boxed() })
    }
}

impl fmt::Display for ObjectUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_one_object() {
        let url = ObjectUrl::parse("s3://data/2026/Rows of May.parquet").expect("an address");
        assert_eq!(
            (url.name(), url.to_string().as_str()),
            ("Rows of May.parquet", "s3://data/2026/Rows of May.parquet")
        );
        for (bad, says) in [
            ("rows.csv", "no scheme"),
            ("s3://bucket", "no object"),
            ("s3://bucket/", "needs a bucket and"),
            ("s3:///key", "needs a bucket and"),
            ("s3://bucket/a/../b", ".."),
            ("file://rows.csv", "absolute"),
            ("https://example.org/rows.csv", "https:// is not supported"),
        ] {
            let error = ObjectUrl::parse(bad).expect_err(bad).to_string();
            assert!(error.contains(says) && error.contains("s3://bucket/"), "{error}");
        }
    }

    #[test]
    fn a_place_holds_what_is_below_it_and_nothing_beside_it() {
        let url = ObjectUrl::parse("s3://data/2026/rows.csv").expect("an address");
        for place in ["s3://data", "s3://data/", "s3://data/2026", "s3://data/2026/"] {
            assert!(url.is_in(place), "{place}");
        }
        for place in ["", "s3://dat", "s3://data/20", "gs://data", "file:///", "s3://data/2026/rows.csv"] {
            assert!(!url.is_in(place), "{place}");
        }
    }

    #[test]
    fn a_file_lies_where_its_links_lead() {
        let folder = tempfile::tempdir().expect("a folder");
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        std::fs::create_dir_all(&inside).expect("made");
        std::fs::write(&outside, "secret").expect("written");
        std::fs::write(inside.join("rows.csv"), "a").expect("written");
        std::os::unix::fs::symlink(&outside, inside.join("link.csv")).expect("linked");
        let place = format!("file://{}", inside.display());
        let url = |name: &str| ObjectUrl::parse(&format!("{place}/{name}")).expect("an address");
        assert!(url("rows.csv").is_in(&place) && url("absent.csv").is_in(&place));
        for name in ["link.csv", "../out", "../absent.csv", ".."] {
            assert!(!url(name).is_in(&place), "{name}");
        }
    }
}
