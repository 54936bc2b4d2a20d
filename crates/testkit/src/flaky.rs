//! A backend that fails as it is told to.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::faults::{Fault, Faults, Op};

/// How many of the newest objects a lagging listing hides.
const LAG: usize = 3;
const SLOW: Duration = Duration::from_millis(5);

/// Wraps a backend and fails as [`Faults`] commands.
#[derive(Debug)]
pub struct FlakyStore {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
    /// What was written last, for listings that lag.
    newest: Arc<Mutex<VecDeque<Path>>>,
}

impl FlakyStore {
    pub fn over(inner: Arc<dyn ObjectStore>) -> (Arc<dyn ObjectStore>, Faults) {
        let faults = Faults::default();
        (Arc::new(Self { inner, faults: faults.clone(), newest: Arc::default() }), faults)
    }

    /// Over a new store in memory.
    pub fn memory() -> (Arc<dyn ObjectStore>, Faults) {
        Self::over(Arc::new(InMemory::new()))
    }

    /// Over a store in memory with the objects of another, which goes its own way from here.
    pub fn fork(of: &InMemory) -> (Arc<dyn ObjectStore>, Faults) {
        Self::over(Arc::new(of.fork()))
    }

    fn wrote(&self, path: &Path) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.push_back(path.clone());
        while newest.len() > LAG {
            newest.pop_front();
        }
    }

    fn is_new(&self, path: &Path) -> bool {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).contains(path)
    }

    async fn put(
        &self,
        fault: Option<Fault>,
        at: &Path,
        payload: PutPayload,
        mut opts: PutOptions,
    ) -> Result<PutResult> {
        match fault {
            None => {}
            Some(Fault::Slow) => tokio::time::sleep(SLOW).await,
            Some(Fault::AnswerLost) => {
                self.inner.put_opts(at, payload, opts).await?;
                return Err(failure(Fault::AnswerLost));
            }
            Some(Fault::Replayed) => {
                let first = self.inner.put_opts(at, payload.clone(), opts.clone()).await;
                drop(first);
            }
            Some(Fault::ConditionIgnored) => opts.mode = PutMode::Overwrite,
            Some(other) => return Err(failure(other)),
        }
        self.inner.put_opts(at, payload, opts).await
    }
}

impl fmt::Display for FlakyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlakyStore({})", self.inner)
    }
}

fn failure(fault: Fault) -> Error {
    let reset = || io::Error::new(io::ErrorKind::ConnectionReset, "connection reset (injected)");
    let source: Box<dyn std::error::Error + Send + Sync> = match fault {
        // ENOSPC
        Fault::Full => Box::new(io::Error::from_raw_os_error(28)),
        Fault::ServerError => "500 Internal Server Error (injected)".into(),
        Fault::Throttled => "503 Slow Down (injected)".into(),
        Fault::Unsupported => {
            let (operation, implementer) = ("a put with If-None-Match".into(), "this store".into());
            return Error::NotImplemented { operation, implementer };
        }
        _ => Box::new(reset()),
    };
    Error::Generic { store: "FlakyStore", source }
}

/// What is lost of an answer: the second half, with or without a word.
async fn halved(whole: GetResult, fault: Fault) -> Result<GetResult> {
    let (meta, range, attributes) = (whole.meta.clone(), whole.range.clone(), whole.attributes.clone());
    let extensions = whole.extensions.clone();
    let bytes = whole.bytes().await?;
    let half: Bytes = bytes.slice(..bytes.len() / 2);
    let end = if fault == Fault::Torn { vec![Err(failure(fault))] } else { Vec::new() };
    let pieces = futures::stream::iter(std::iter::once(Ok(half)).chain(end));
    Ok(GetResult { payload: GetResultPayload::Stream(pieces.boxed()), meta, range, attributes, extensions })
}

/// The same bytes a thousand times, under the size of one.
async fn overlong(whole: GetResult) -> Result<GetResult> {
    let (meta, range, attributes) = (whole.meta.clone(), whole.range.clone(), whole.attributes.clone());
    let extensions = whole.extensions.clone();
    let bytes = whole.bytes().await?;
    let pieces = futures::stream::iter(std::iter::repeat_n(bytes, 1000).map(Ok::<_, Error>));
    Ok(GetResult { payload: GetResultPayload::Stream(pieces.boxed()), meta, range, attributes, extensions })
}

#[async_trait]
impl ObjectStore for FlakyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let op = if matches!(opts.mode, PutMode::Overwrite) { Op::Put } else { Op::Create };
        let fault = self.faults.next(op, location.as_ref()).await;
        let outcome = self.put(fault, location, payload, opts).await;
        if outcome.is_ok() || fault == Some(Fault::AnswerLost) {
            self.wrote(location);
        }
        outcome
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        match self.faults.next(Op::Multipart, at.as_ref()).await {
            None | Some(Fault::Slow) => self.inner.put_multipart_opts(at, opts).await,
            Some(fault) => Err(failure(fault)),
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        match self.faults.next(Op::Get, location.as_ref()).await {
            None => self.inner.get_opts(location, options).await,
            Some(Fault::Slow) => {
                tokio::time::sleep(SLOW).await;
                self.inner.get_opts(location, options).await
            }
            Some(fault @ (Fault::Torn | Fault::Truncated)) if !options.head => {
                halved(self.inner.get_opts(location, options).await?, fault).await
            }
            Some(Fault::Overlong) if !options.head => overlong(self.inner.get_opts(location, options).await?).await,
            Some(fault) => Err(failure(fault)),
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (self.inner.clone(), self.faults.clone());
        let each = locations.and_then(move |path| {
            let (inner, faults) = (inner.clone(), faults.clone());
            async move {
                let fault = faults.next(Op::Delete, path.as_ref()).await;
                let happens = matches!(fault, None | Some(Fault::Slow | Fault::AnswerLost | Fault::Replayed));
                if happens {
                    let one = futures::stream::iter([Ok(path.clone())]).boxed();
                    inner.delete_stream(one).try_collect::<Vec<_>>().await?;
                }
                match fault {
                    None | Some(Fault::Slow | Fault::Replayed) => Ok(path),
                    Some(fault) => Err(failure(fault)),
                }
            }
        });
        each.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, faults, newest) = (self.inner.clone(), self.faults.clone(), self.newest.clone());
        let prefix = prefix.cloned();
        let answer = async move {
            let what = prefix.as_ref().map(ToString::to_string).unwrap_or_default();
            let fault = faults.next(Op::List, &what).await;
            let found = inner.list(prefix.as_ref());
            match fault {
                None | Some(Fault::Slow) => found,
                Some(Fault::Lagging) => {
                    let hidden: Vec<Path> =
                        newest.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
                    found.try_filter(move |meta| std::future::ready(!hidden.contains(&meta.location))).boxed()
                }
                Some(Fault::Reordered) => {
                    let all = found.collect::<Vec<_>>().await;
                    futures::stream::iter(all.into_iter().rev()).boxed()
                }
                Some(fault) => futures::stream::once(async move { Err(failure(fault)) }).boxed(),
            }
        };
        futures::stream::once(answer).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let what = prefix.map(ToString::to_string).unwrap_or_default();
        match self.faults.next(Op::List, &what).await {
            None | Some(Fault::Slow) => self.inner.list_with_delimiter(prefix).await,
            Some(Fault::Lagging) => {
                let mut found = self.inner.list_with_delimiter(prefix).await?;
                found.objects.retain(|meta| !self.is_new(&meta.location));
                Ok(found)
            }
            Some(Fault::Reordered) => {
                let mut found = self.inner.list_with_delimiter(prefix).await?;
                found.objects.reverse();
                found.common_prefixes.reverse();
                Ok(found)
            }
            Some(fault) => Err(failure(fault)),
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        match self.faults.next(Op::Put, to.as_ref()).await {
            None | Some(Fault::Slow) => self.inner.copy_opts(from, to, options).await,
            Some(fault) => Err(failure(fault)),
        }
    }
}
