//! One run on several devices or hosts: each rank makes the gradient of its share of every batch, the sum of all shares
//! is what every rank's optimizer gets.
//!
//! A share's loss is already divided by the labels of the WHOLE batch, so the sum over ranks is the gradient that one
//! rank would have made of it all. The shares are the batch cut into runs of like length, as accumulation cuts it: two
//! ranks add what one rank with two passes adds. What a run decides (to stop, to save, that a measurement is the best) it decides
//! from figures that are the same bits on all ranks, or that rank 0 tells.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tailor_torch::{Meeting, ProcessGroup};
use tch::Tensor;

use crate::error::Error;

/// This process's place among the ranks of a run. Cloning shares it, on the thread that connected it.
#[derive(Debug, Clone)]
pub struct Ranks(Option<Rc<ProcessGroup>>);

/// What a rank would like at the beginning of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// The run was asked to end.
    pub stop: bool,
    /// The budget of time or money is used up.
    pub over_budget: bool,
    pub checkpoint: bool,
    /// A rank other than 0 must leave.
    pub leaving: bool,
}

impl Ranks {
    /// The whole run.
    pub const fn alone() -> Self {
        Self(None)
    }

    /// Connects rank `rank` of `world` to the others, which do the same at this meeting; `own` is where they reach it.
    ///
    /// # Errors
    /// Another rank does not come within `timeout` or cannot be reached.
    pub fn connect(meeting: &Meeting, own: IpAddr, rank: u32, world: u32, timeout: Duration) -> Result<Self, Error> {
        let group = ProcessGroup::open(meeting, own, rank, world, timeout).map_err(Error::ranks("connecting"))?;
        Ok(Self(Some(Rc::new(group))))
    }

    pub fn rank(&self) -> u32 {
        self.0.as_ref().map_or(0, |group| group.rank())
    }

    pub fn world(&self) -> u32 {
        self.0.as_ref().map_or(1, |group| group.world())
    }

    /// Whether this rank speaks for the run: it saves, evaluates and publishes.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Rows of the largest share of a batch.
    pub(crate) fn largest_share(&self, batch_rows: u64) -> u64 {
        batch_rows.div_ceil(u64::from(self.world()))
    }

    /// This rank's run of a batch; all shares together are the batch. Empty where there are more ranks than rows.
    pub(crate) fn share<'a, T>(&self, batch: &'a [T]) -> &'a [T] {
        let (rank, world) = (self.rank() as usize, self.world() as usize);
        &batch[batch.len() * rank / world..batch.len() * (rank + 1) / world]
    }

    /// Every `world`-th part, this rank's first.
    pub(crate) fn deal<T>(&self, parts: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
        parts.skip(self.rank() as usize).step_by(self.world() as usize)
    }

    /// Dropout and noise of this step hang on seed, step and rank alone, so that a checkpoint of rank 0 is enough for
    /// all. A run alone keeps the generator that its checkpoints hold.
    pub(crate) fn seed(&self, seed: u64, step: u64) {
        if self.0.is_some() {
            let mixed = mix(mix(mix(seed).wrapping_add(step)).wrapping_add(u64::from(self.rank())));
            tch::manual_seed(mixed as i64);
        }
    }

    /// What the ranks together wish: the first three are rank 0's, `leaving` is anybody's else.
    pub(crate) fn agree(&self, own: Wishes) -> Result<Wishes, Error> {
        let Some(group) = &self.0 else { return Ok(own) };
        let of_first = |wish: bool| f64::from(u8::from(wish && self.is_first()));
        let leaving = f64::from(u8::from(own.stop && !self.is_first()));
        let sums = group
            .sum(&[of_first(own.stop), of_first(own.over_budget), of_first(own.checkpoint), leaving])
            .map_err(Error::ranks("between two steps"))?;
        let [stop, over_budget, checkpoint, leaving] = [0, 1, 2, 3].map(|at: usize| sums[at] > 0.0);
        Ok(Wishes { stop, over_budget, checkpoint, leaving })
    }

    /// The sums over all ranks, the same bits on each.
    pub(crate) fn sum<const N: usize>(&self, own: [f64; N], at: &str) -> Result<[f64; N], Error> {
        let Some(group) = &self.0 else { return Ok(own) };
        let sums = group.sum(&own).map_err(Error::ranks(at))?;
        let mut all = own;
        all.copy_from_slice(&sums);
        Ok(all)
    }

    /// The gradient becomes the sum over all ranks.
    pub(crate) fn add_up(&self, gradient: &Tensor, at: &str) -> Result<(), Error> {
        match &self.0 {
            Some(group) => group.all_reduce(&[gradient]).map_err(Error::ranks(at)),
            None => Ok(()),
        }
    }

    /// The least of all ranks' numbers.
    pub(crate) fn least(&self, own: u64) -> Result<u64, Error> {
        match &self.0 {
            Some(group) => Ok(group.least(own as f64).map_err(Error::ranks("before the first step"))? as u64),
            None => Ok(own),
        }
    }

    /// Begins where rank 0 begins: the same run, checked, and its parameters to the bit.
    pub(crate) fn begin(&self, identity: &str, parameters: &Tensor) -> Result<(), Error> {
        let Some(group) = &self.0 else { return Ok(()) };
        let before = || Error::ranks("before the first step");
        if !group.agrees(identity.as_bytes()).map_err(before())? {
            let rank = group.rank();
            let problem = format!(
                "rank {rank} would train something else than rank 0: its rows, settings or base differ; \
                 run the same version of Tailor on all trainers"
            );
            return Err(Error::Ranks { at: "before the first step".into(), problem });
        }
        group.broadcast(parameters, 0).map_err(before())
    }
}

/// splitmix64's output function (Steele, Lea, Flood 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
