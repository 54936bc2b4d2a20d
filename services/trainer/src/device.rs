//! The device belongs to one named OS thread. Async code hands it tasks over a bounded channel and waits for their answers.
//!
//! Tasks that run at the same time take turns: a step, a batch of answers, a base being loaded. The one that has had the least
//! of the device's time so far goes next, and one that comes later begins where the least served stands. Each finds the thread
//! as it left it, random numbers included, so that what it computes does not hang on who else is there; a panic in one ends
//! that one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tailor_torch::Surroundings;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use crate::resident::Bases;

/// Tasks under way to the thread.
const INBOX: usize = 16;

/// Work on the device, turn by turn. Made and kept on its thread.
pub trait Task {
    /// What comes out at the end.
    type Answer: Send + 'static;

    /// Does a little; Some at the end, and then never again.
    ///
    /// # Errors
    /// The task is over and has failed.
    fn turn(&mut self, bases: &mut Bases) -> Result<Option<Self::Answer>>;
}

/// A handle to the device's thread. With the last one the thread ends, after the turn it is in; whoever drops that one waits for
/// it, so that no thread is inside libtorch while the process ends.
#[derive(Debug, Clone)]
pub struct Device(Arc<Thread>);

#[derive(Debug)]
struct Thread {
    /// None once nothing more comes.
    inbox: Option<mpsc::Sender<Starting>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.inbox = None;
        // Its panics are caught turn by turn. A task of its own may hold the last handle.
        let other = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id());
        let _ = other.map(JoinHandle::join);
    }
}

/// Makes the task on the thread, since what it holds may not leave it.
struct Starting {
    name: &'static str,
    span: tracing::Span,
    start: Box<dyn FnOnce() -> Box<dyn Turns> + Send>,
}

/// A task with the way back for its answer.
trait Turns {
    /// False at the end, after the answer has gone out.
    fn turn(&mut self, bases: &mut Bases) -> bool;
}

struct Answering<T: Task> {
    task: T,
    answer: Option<oneshot::Sender<Result<T::Answer>>>,
}

impl<T: Task> Turns for Answering<T> {
    fn turn(&mut self, bases: &mut Bases) -> bool {
        let Some(outcome) = self.task.turn(bases).transpose() else { return true };
        if let Some(answer) = self.answer.take() {
            // Nobody waits any more only when the process is stopping.
            let _ = answer.send(outcome);
        }
        false
    }
}

/// Work that is done in one turn.
struct Once<F>(Option<F>);

impl<A: Send + 'static, F: FnOnce() -> Result<A>> Task for Once<F> {
    type Answer = A;

    fn turn(&mut self, _: &mut Bases) -> Result<Option<A>> {
        self.0.take().map(|work| work()).transpose()
    }
}

impl Device {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::DeviceGone`]: the system gives no thread.
    pub fn start(name: &str) -> Result<Self> {
        let (inbox, tasks) = mpsc::channel(INBOX);
        let thread =
            std::thread::Builder::new().name(name.to_owned()).spawn(move || serve(tasks)).map_err(|error| {
                tracing::error!(%error, "cannot start the device thread");
                Error::DeviceGone
            })?;
        Ok(Self(Arc::new(Thread { inbox: Some(inbox), thread: Some(thread) })))
    }

    /// Runs a task to its end, in turns with others.
    ///
    /// # Errors
    /// What the task failed with; [`Error::DeviceGone`] after a panic in it.
    pub async fn run<T: Task + 'static>(
        &self,
        name: &'static str,
        span: tracing::Span,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T::Answer> {
        let (answer, done) = oneshot::channel();
        let start = Box::new(move || Box::new(Answering { task: make(), answer: Some(answer) }) as Box<dyn Turns>);
        let inbox = self.0.inbox.as_ref().ok_or(Error::DeviceGone)?;
        inbox.send(Starting { name, span, start }).await.map_err(|_| Error::DeviceGone)?;
        done.await.unwrap_or(Err(Error::DeviceGone))
    }

    /// Runs `work` in one turn, while everybody else waits.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn once<A: Send + 'static>(
        &self,
        name: &'static str,
        span: tracing::Span,
        work: impl FnOnce() -> Result<A> + Send + 'static,
    ) -> Result<A> {
        self.run(name, span, move || Once(Some(work))).await
    }
}

/// A task that has begun.
struct Running {
    name: &'static str,
    span: tracing::Span,
    task: Box<dyn Turns>,
    surroundings: Surroundings,
    /// Of the device's time.
    had: Duration,
}

fn serve(mut inbox: mpsc::Receiver<Starting>) {
    let mut bases = Bases::default();
    let mut running: Vec<Running> = Vec::new();
    loop {
        match next(&mut inbox, running.is_empty()) {
            Next::Start(starting) => {
                let had = running.iter().map(|task| task.had).min().unwrap_or_default();
                let Starting { name, span, start } = starting;
                running.push(Running { name, span, task: start(), surroundings: Surroundings::default(), had });
            }
            Next::GoOn => {
                let least = (0..running.len()).min_by_key(|at| running[*at].had);
                let Some(at) = least else { continue };
                if !running[at].turn(&mut bases) {
                    // Its memory is free before anybody else has a turn.
                    drop(running.remove(at));
                }
            }
            Next::End => return,
        }
    }
}

enum Next {
    Start(Starting),
    GoOn,
    End,
}

/// New tasks before turns; without any task it waits.
fn next(inbox: &mut mpsc::Receiver<Starting>, idle: bool) -> Next {
    if idle {
        return inbox.blocking_recv().map_or(Next::End, Next::Start);
    }
    match inbox.try_recv() {
        Ok(starting) => Next::Start(starting),
        Err(TryRecvError::Empty) => Next::GoOn,
        // Without handles nobody waits for what is under way.
        Err(TryRecvError::Disconnected) => Next::End,
    }
}

impl Running {
    /// False once it is over, however it ended.
    fn turn(&mut self, bases: &mut Bases) -> bool {
        let started = Instant::now();
        let (task, surroundings, name) = (&mut self.task, &mut self.surroundings, self.name);
        let turn = || surroundings.within(|| task.turn(bases));
        let goes_on = match self.span.in_scope(|| catch_unwind(AssertUnwindSafe(turn))) {
            Ok(Ok(goes_on)) => goes_on,
            Ok(Err(error)) => {
                tracing::error!(%error, name, "a task is ended: the random generator cannot be kept for it");
                false
            }
            // Its answer is dropped with it, which tells whoever waits.
            Err(_) => {
                tracing::error!(name, "a task is ended by a panic");
                false
            }
        };
        self.had += started.elapsed();
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Takes so many turns, says so after each, and panics in the one after `sound`.
    struct Counting {
        name: &'static str,
        left: u32,
        sound: u32,
        said: Sender<&'static str>,
        each: Duration,
    }

    impl Task for Counting {
        type Answer = &'static str;

        fn turn(&mut self, _: &mut Bases) -> Result<Option<&'static str>> {
            std::thread::sleep(self.each);
            assert!(self.sound > 0, "this panic is part of the test");
            self.sound -= 1;
            self.left -= 1;
            let _ = self.said.send(self.name);
            Ok((self.left == 0).then_some(self.name))
        }
    }

    async fn run(device: &Device, task: Counting) -> Result<&'static str> {
        device.run(task.name, tracing::Span::none(), move || task).await
    }

    fn order(said: &Receiver<&'static str>) -> Vec<&'static str> {
        said.try_iter().collect()
    }

    /// What is under way ends after its turn, and the thread with it.
    #[tokio::test]
    async fn the_last_handle_takes_the_thread_along() {
        let device = Device::start("tailor-device-test").expect("a thread");
        let (said, heard) = channel();
        let endless =
            Counting { name: "endless", left: u32::MAX, sound: u32::MAX, said, each: Duration::from_millis(1) };
        let work = run(&device, endless);
        assert!(tokio::time::timeout(Duration::from_millis(50), work).await.is_err(), "it goes on");
        drop(device);
        // The task is gone, and with it the sender.
        while heard.recv().is_ok() {}
    }

    #[tokio::test]
    async fn tasks_take_turns_by_the_time_they_had_and_a_panic_ends_one_alone() {
        let device = Device::start("tailor-device-test").expect("a thread");
        let (said, heard) = channel();
        // Holds the device until all three have come.
        let (open, gate) = channel::<()>();
        let held = device.once("gate", tracing::Span::none(), move || {
            let _ = gate.recv();
            Ok(())
        });
        let counting = |name, left, sound, ms| {
            let each = Duration::from_millis(ms);
            Counting { name, left, sound, said: said.clone(), each }
        };
        let quick = run(&device, counting("quick", 9, 99, 10));
        let slow = run(&device, counting("slow", 3, 99, 40));
        let bad = run(&device, counting("bad", 9, 2, 10));
        let opening = async {
            tokio::task::yield_now().await;
            open.send(()).expect("the gate waits");
        };
        let (held, quick, slow, bad, ()) = tokio::join!(held, quick, slow, bad, opening);
        held.expect("opened");
        assert_eq!((quick.expect("ends"), slow.expect("ends")), ("quick", "slow"));
        assert!(matches!(bad.expect_err("panics"), Error::DeviceGone));
        let order = order(&heard);
        let before_last_slow = order.iter().rposition(|name| *name == "slow").expect("it ran");
        let quick_before = order[..before_last_slow].iter().filter(|name| **name == "quick").count();
        assert!(quick_before >= 5, "who takes little time has more turns: {order:?}");
        assert_eq!(order.iter().filter(|name| **name == "bad").count(), 2, "{order:?}");
        assert_eq!(run(&device, counting("next", 1, 1, 0)).await.expect("the thread goes on"), "next");
    }
}
