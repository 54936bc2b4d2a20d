//! How a store fails on command: the n-th operation of a kind, all of a kind, one step of a whole, or everything from a step
//! on. [`crate::FlakyStore`] carries it out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

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

/// A way to fail. One that has no meaning for an operation is taken as `Away`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No answer, and nothing happened.
    Away,
    /// 500, and nothing happened.
    ServerError,
    /// 503 Slow Down, and nothing happened.
    Throttled,
    /// It takes a while, and then happens.
    Slow,
    /// No room left on the device; nothing happened.
    Full,
    /// It happened, and the answer was lost. Only for writes and deletions.
    AnswerLost,
    /// It happened, and was sent a second time by a client that saw no answer. Only for puts.
    Replayed,
    /// The connection breaks in the middle of the answer. Only for reads.
    Torn,
    /// The answer ends early and says nothing of it. Only for reads.
    Truncated,
    /// The answer goes on and on beyond the size that it says it has. Only for reads.
    Overlong,
    /// A listing does not show the last things written. Only for listings.
    Lagging,
    /// A listing comes in another order. Only for listings.
    Reordered,
    /// The condition is ignored: a Create replaces. Only for `Op::Create`.
    ConditionIgnored,
    /// The store does not know the condition, and says so. Only for `Op::Create`.
    Unsupported,
}

#[derive(Debug, Default)]
struct Plan {
    seen: HashMap<Op, u64>,
    nth: Vec<(Op, u64, Fault)>,
    all: HashMap<Op, Fault>,
    steps: u64,
    at_step: Option<(u64, Fault)>,
    cut_from: Option<u64>,
    pause: Option<Pause>,
    trace: Vec<String>,
}

#[derive(Debug, Clone)]
struct Pause {
    step: u64,
    reached: Arc<Notify>,
    go_on: Arc<Notify>,
}

/// A store that stands still before a step.
#[derive(Debug)]
pub struct Paused {
    reached: Arc<Notify>,
    go_on: Arc<Notify>,
}

impl Paused {
    /// Waits until the step is reached.
    pub async fn reached(&self) {
        self.reached.notified().await;
    }

    /// Lets the step happen.
    pub fn go_on(&self) {
        self.go_on.notify_one();
    }
}

/// Commands the faults of a [`crate::FlakyStore`].
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
        self.cut_at(1);
    }

    /// The n-th operation of any kind from now on fails; 1 is the next.
    pub fn fail_step(&self, n: u64, fault: Fault) {
        let mut plan = self.plan();
        plan.at_step = Some((plan.steps + n, fault));
    }

    /// The n-th operation of any kind from now on and every later one fails: the process that makes them is dead.
    pub fn cut_at(&self, n: u64) {
        let mut plan = self.plan();
        plan.cut_from = Some(plan.steps + n);
    }

    /// The n-th operation of any kind from now on waits for [`Paused::go_on`].
    pub fn pause_at(&self, n: u64) -> Paused {
        let mut plan = self.plan();
        let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        plan.pause = Some(Pause { step: plan.steps + n, reached: reached.clone(), go_on: go_on.clone() });
        Paused { reached, go_on }
    }

    pub fn heal(&self) {
        let mut plan = self.plan();
        plan.all.clear();
        plan.nth.clear();
        plan.at_step = None;
        plan.cut_from = None;
        plan.pause = None;
    }

    /// How many operations of this kind there were, failed ones too.
    pub fn count(&self, op: Op) -> u64 {
        self.plan().seen.get(&op).copied().unwrap_or(0)
    }

    /// How many operations there were, failed ones too.
    pub fn steps(&self) -> u64 {
        self.plan().steps
    }

    /// What each operation was, e.g. `Create adapters/grammar/versions/00000001.json`.
    pub fn trace(&self) -> Vec<String> {
        self.plan().trace.clone()
    }

    /// Counts an operation, waits if it is to wait, and says how it fails.
    pub(crate) async fn next(&self, op: Op, what: &str) -> Option<Fault> {
        let (fault, pause) = self.plan().step(op, what);
        if let Some(pause) = pause {
            pause.reached.notify_one();
            pause.go_on.notified().await;
        }
        fault
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    fn step(&mut self, op: Op, what: &str) -> (Option<Fault>, Option<Pause>) {
        self.steps += 1;
        let seen = self.seen.entry(op).or_default();
        *seen += 1;
        let now = *seen;
        self.trace.push(format!("{op:?} {what}"));
        let cut = self.cut_from.filter(|from| self.steps >= *from).map(|_| Fault::Away);
        let at_step = self.at_step.filter(|(step, _)| *step == self.steps).map(|(_, fault)| fault);
        let nth = self.nth.iter().find(|(of, at, _)| *of == op && *at == now).map(|(_, _, fault)| *fault);
        let fault = cut.or(at_step).or(nth).or_else(|| self.all.get(&op).copied());
        (fault, self.pause.clone().filter(|pause| pause.step == self.steps))
    }
}
