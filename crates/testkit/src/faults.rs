//! A store that fails on command: the n-th operation of a kind, or all of them, in the ways real stores fail.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// A put that replaces.
    Put,
    /// A put that must not replace.
    Create,
    Multipart,
    /// Reads and look-ups.
    Get,
    List,
    Delete,
}

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No answer, and nothing happened.
    Away,
    /// No room left on the device; nothing happened.
    Full,
    /// It happened, and the answer was lost. Only for puts; others take it as `Away`.
    AnswerLost,
    /// It happened, and was sent a second time by a client that saw no answer. Only for puts.
    Replayed,
    /// The condition is ignored: a Create replaces. Only for `Op::Create`.
    ConditionIgnored,
}

#[derive(Debug, Default)]
struct Plan {
    seen: HashMap<Op, u64>,
    nth: Vec<(Op, u64, Fault)>,
    all: HashMap<Op, Fault>,
}

/// Commands the faults of a [`FlakyStore`].
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

impl Faults {
    /// The n-th operation of this kind from now on fails; 1 is the next.
    pub fn fail_nth(&self, op: Op, n: u64, fault: Fault) {
        let mut plan = self.plan();
        let at = plan.seen.get(&op).copied().unwrap_or(0) + n;
        plan.nth.push((op, at, fault));
    }

    /// Every operation of this kind fails until [`Faults::heal`].
    pub fn fail_all(&self, op: Op, fault: Fault) {
        self.plan().all.insert(op, fault);
    }

    /// Everything fails, as if the network were cut.
    pub fn cut(&self) {
        for op in [Op::Put, Op::Create, Op::Multipart, Op::Get, Op::List, Op::Delete] {
            self.fail_all(op, Fault::Away);
        }
    }

    pub fn heal(&self) {
        let mut plan = self.plan();
        plan.all.clear();
        plan.nth.clear();
    }

    /// How many operations of this kind there were, failed ones too.
    pub fn count(&self, op: Op) -> u64 {
        self.plan().seen.get(&op).copied().unwrap_or(0)
    }

    fn next(&self, op: Op) -> Option<Fault> {
        let mut plan = self.plan();
        let seen = plan.seen.entry(op).or_default();
        *seen += 1;
        let now = *seen;
        let due = plan.nth.iter().find(|(of, at, _)| *of == op && *at == now).map(|(_, _, fault)| *fault);
        due.or_else(|| plan.all.get(&op).copied())
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wraps a backend and fails as [`Faults`] commands.
#[derive(Debug)]
pub struct FlakyStore {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
}

impl FlakyStore {
    pub fn over(inner: Arc<dyn ObjectStore>) -> (Arc<dyn ObjectStore>, Faults) {
        let faults = Faults::default();
        (Arc::new(Self { inner, faults: faults.clone() }), faults)
    }

    /// Over a new store in memory.
    pub fn memory() -> (Arc<dyn ObjectStore>, Faults) {
        Self::over(Arc::new(InMemory::new()))
    }

    fn check(&self, op: Op) -> Result<()> {
        self.faults.next(op).map_or(Ok(()), |fault| Err(failure(fault)))
    }
}

impl fmt::Display for FlakyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlakyStore({})", self.inner)
    }
}

fn failure(fault: Fault) -> Error {
    let source = match fault {
        // ENOSPC
        Fault::Full => io::Error::from_raw_os_error(28),
        Fault::Away | Fault::AnswerLost | Fault::Replayed | Fault::ConditionIgnored => {
            io::Error::new(io::ErrorKind::ConnectionReset, "connection reset (injected)")
        }
    };
    Error::Generic { store: "FlakyStore", source: Box::new(source) }
}

#[async_trait]
impl ObjectStore for FlakyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        let op = if matches!(opts.mode, PutMode::Overwrite) { Op::Put } else { Op::Create };
        match self.faults.next(op) {
            None => self.inner.put_opts(location, payload, opts).await,
            Some(fault @ (Fault::Away | Fault::Full)) => Err(failure(fault)),
            Some(Fault::AnswerLost) => {
                self.inner.put_opts(location, payload, opts).await?;
                Err(failure(Fault::AnswerLost))
            }
            Some(Fault::Replayed) => {
                let first = self.inner.put_opts(location, payload.clone(), opts.clone()).await;
                drop(first);
                self.inner.put_opts(location, payload, opts).await
            }
            Some(Fault::ConditionIgnored) => {
                opts.mode = PutMode::Overwrite;
                self.inner.put_opts(location, payload, opts).await
            }
        }
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.check(Op::Multipart)?;
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.check(Op::Get)?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.check(Op::Delete) {
            Ok(()) => self.inner.delete_stream(locations),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.check(Op::List) {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.check(Op::List)?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.check(Op::Put)?;
        self.inner.copy_opts(from, to, options).await
    }
}
