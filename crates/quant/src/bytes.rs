//! Bytes that are either owned or part of a mapped file, and shared without copying.

use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

/// A cheap handle on immutable bytes.
#[derive(Clone)]
pub struct Bytes(Repr);

#[derive(Clone)]
enum Repr {
    Owned(Arc<[u8]>),
    Mapped { map: Arc<Mmap>, range: Range<usize> },
}

impl Bytes {
    /// `range` must lie within `map`; [`crate::Checkpoint`] has checked it against the header.
    pub(crate) fn mapped(map: Arc<Mmap>, range: Range<usize>) -> Self {
        debug_assert!(range.end <= map.len());
        Self(Repr::Mapped { map, range })
    }

    /// Lets the kernel have the mapped pages back, now that they are done with: they no longer count as this process's
    /// memory, and are read from the file again should anyone look.
    pub fn evict(&self) {
        let Repr::Mapped { map, range } = &self.0 else { return };
        #[cfg(unix)]
        // SAFETY: the mapping is of a file, read-only and shared with nobody who writes: what comes back is the same.
        // That it cannot be done only costs memory.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
    }

    /// Whether the bytes live in a mapped file rather than on the heap.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0, Repr::Mapped { .. })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Owned(bytes) => bytes,
            Repr::Mapped { map, range } => &map[range.clone()],
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Repr::Owned(bytes.into()))
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.is_mapped() { "mapped" } else { "owned" };
        write!(f, "Bytes({} {place})", self.len())
    }
}
