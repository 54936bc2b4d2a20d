//! Which adapters are in memory, by digest, and which are on their way out.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::PoisonError;

use tailor_domain::Digest;
use tailor_models::{Base, LoraSet, Prepared};
use tailor_torch::guarded;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::handle::Shown;
use crate::options::ResidentAdapter;

type Reply = oneshot::Sender<Result<(), Error>>;

/// An adapter on the device. Each sequence that uses it holds a handle.
pub struct Resident {
    pub set: LoraSet,
    info: ResidentAdapter,
}

pub struct Residency {
    adapters: BTreeMap<Digest, Rc<Resident>>,
    /// Unloaded, but still in use; and who waits for the end of it.
    leaving: Vec<(Rc<Resident>, Vec<Reply>)>,
    shown: Shown,
}

impl Residency {
    pub fn new(shown: Shown) -> Self {
        Self { adapters: BTreeMap::new(), leaving: Vec::new(), shown }
    }

    /// Idempotent: a digest says what the adapter is.
    ///
    /// # Errors
    /// It does not fit the base, or is still being unloaded.
    pub fn load(
        &mut self,
        base: &Base,
        digest: Digest,
        rank: u32,
        prepared: Prepared,
    ) -> Result<ResidentAdapter, Error> {
        if let Some(resident) = self.adapters.get(&digest) {
            return Ok(resident.info.clone());
        }
        if self.is_leaving(&digest) {
            return Err(Error::Unloading { digest });
        }
        let set = guarded(|| prepared.install(base)).map_err(|error| Error::adapter(&digest, error))?;
        let info = ResidentAdapter { digest: digest.clone(), size_bytes: set.resident_bytes() as u64, rank };
        self.adapters.insert(digest, Rc::new(Resident { set, info: info.clone() }));
        self.show();
        Ok(info)
    }

    /// Takes an adapter out of service; `reply` is answered when its last sequence has ended.
    pub fn unload(&mut self, digest: &Digest, reply: Reply) {
        if let Some(resident) = self.adapters.remove(digest) {
            self.leaving.push((resident, vec![reply]));
        } else if let Some((_, waiting)) = self.leaving.iter_mut().find(|(leaving, _)| leaving.info.digest == *digest) {
            waiting.push(reply);
        } else {
            // The caller may be gone; then nobody needs to know.
            let _ = reply.send(Err(Error::UnknownAdapter { digest: digest.clone() }));
        }
        self.show();
        self.let_go();
    }

    /// Frees what no sequence uses any more.
    pub fn let_go(&mut self) {
        let (gone, leaving) =
            std::mem::take(&mut self.leaving).into_iter().partition(|(r, _)| Rc::strong_count(r) == 1);
        self.leaving = leaving;
        let gone: Vec<(Rc<Resident>, Vec<Reply>)> = gone;
        for (resident, waiting) in gone {
            drop(resident);
            for reply in waiting {
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// The adapter a request names; None where it names none.
    ///
    /// # Errors
    /// It is not resident: never the base's answer in its place.
    pub fn find(&self, digest: Option<&Digest>) -> Result<Option<Rc<Resident>>, Error> {
        let Some(digest) = digest else { return Ok(None) };
        match self.adapters.get(digest) {
            Some(resident) => Ok(Some(Rc::clone(resident))),
            None if self.is_leaving(digest) => Err(Error::Unloading { digest: digest.clone() }),
            None => Err(Error::UnknownAdapter { digest: digest.clone() }),
        }
    }

    fn is_leaving(&self, digest: &Digest) -> bool {
        self.leaving.iter().any(|(resident, _)| resident.info.digest == *digest)
    }

    fn show(&self) {
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        *shown = self.adapters.iter().map(|(digest, resident)| (digest.clone(), resident.info.clone())).collect();
    }
}
