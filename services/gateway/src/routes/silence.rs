//! Whether the registry says a word. One that hangs, its process stopped or its store, keeps its connections, and nothing else
//! would say so for long.
//!
//! A circuit breaker: once a question has waited in vain, others are told at once that the registry is silent, and go by what is
//! known. One question in a while goes through all the same (half open), and the first word that is heard, be it an answer or
//! the watch's, lets all through again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A registry that is there answers sooner.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// For what nothing is known of: a slow answer is better than none, and one that takes longer does not come.
pub const LONGEST: Duration = Duration::from_secs(30);
/// Pause before one that is silent is asked again.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Silence(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    /// When the registry last said anything.
    last: Option<Instant>,
    /// While it is silent: when the next question goes through.
    next: Option<Instant>,
}

impl Silence {
    /// The registry's answer to one question.
    ///
    /// # Errors
    /// What it says. UNAVAILABLE: it has said nothing for `patience`, or is known to be silent; says when to come again.
    pub async fn ask<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let (begun, patience) = (Instant::now(), self.admit(patience)?);
        let Ok(answer) = timeout(patience, answer).await else {
            self.nothing_since(begun, PAUSE);
            return Err(silent(format!("no word of the registry for {} s", patience.as_secs()), PAUSE));
        };
        // What the transport says has a source; that is no word of the registry's.
        let is_its_word = answer.as_ref().err().is_none_or(|status| std::error::Error::source(status).is_none());
        if is_its_word {
            self.heard();
        }
        answer
    }

    /// The registry has said something.
    pub fn heard(&self) {
        let mut heard = self.lock();
        heard.last = Some(Instant::now());
        if heard.next.take().is_some() {
            tracing::info!("the registry is heard again");
        }
    }

    /// Whoever waits for its word has heard none since then. Unless somebody else has, it counts as silent, and `pause` passes
    /// before it is asked again.
    pub fn nothing_since(&self, begun: Instant, pause: Duration) {
        let mut heard = self.lock();
        // It is slow, or it does not answer this: it does not hang.
        if heard.last.is_some_and(|last| last > begun) || heard.next.is_some() {
            return;
        }
        tracing::warn!("the registry is silent; what is known of names is gone by until it is heard again");
        heard.next = Some(Instant::now() + pause);
    }

    /// How long a question may wait for its answer.
    fn admit(&self, patience: Duration) -> Result<Duration, Status> {
        let (mut heard, now) = (self.lock(), Instant::now());
        match heard.next {
            None => Ok(patience),
            Some(at) if at <= now => {
                // Should its asker go away meanwhile, another asks after that.
                heard.next = Some(now + PATIENCE + PAUSE);
                Ok(patience.min(PATIENCE))
            }
            Some(at) => Err(silent("the registry does not answer".to_owned(), at - now)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silent(problem: String, retry_after: Duration) -> Status {
    let problem = format!("{problem}; come again in {:.1} s", retry_after.as_secs_f64());
    Status::with_error_details(Code::Unavailable, problem, ErrorDetails::with_retry_info(Some(retry_after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(10);

    /// A question that is answered after so long, and how long its asker waited.
    async fn ask(silence: &Silence, patience: Duration, takes: Duration) -> (Result<u32, Status>, Duration) {
        let begun = Instant::now();
        let answer = async {
            tokio::time::sleep(takes).await;
            Ok(7)
        };
        (silence.ask(patience, answer).await, begun.elapsed())
    }

    fn refused((said, waited): (Result<u32, Status>, Duration)) -> (Duration, Duration) {
        let status = said.expect_err("nobody answers");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay).expect("when to come again");
        (waited, retry)
    }

    #[tokio::test(start_paused = true)]
    async fn after_one_has_waited_in_vain_nobody_waits_and_one_in_a_while_asks() {
        let silence = Silence::default();
        assert_eq!(refused(ask(&silence, PATIENCE, Duration::MAX).await).0.as_secs(), 2);
        for patience in [PATIENCE, LONGEST] {
            let (waited, retry) = refused(ask(&silence, patience, MOMENT).await);
            assert_eq!((waited, retry), (Duration::ZERO, PAUSE), "though it would be answered now");
        }
        tokio::time::advance(PAUSE).await;
        // The second comes while the first is on its way.
        let (first, second) =
            tokio::join!(ask(&silence, LONGEST, Duration::MAX), ask(&silence, PATIENCE, Duration::MAX));
        assert_eq!(refused(first).0.as_secs(), 2, "of one that is silent not even who knows nothing waits for long");
        assert_eq!(refused(second).0, Duration::ZERO);
        assert_eq!(refused(ask(&silence, PATIENCE, MOMENT).await).0, Duration::ZERO);
        tokio::time::advance(PAUSE).await;
        assert_eq!(ask(&silence, PATIENCE, MOMENT).await.0.expect("it is back"), 7);
        for _ in 0..3 {
            assert_eq!(ask(&silence, PATIENCE, MOMENT).await.0.expect("for all, and at once"), 7);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_of_the_watch_lets_all_through_again() {
        let silence = Silence::default();
        refused(ask(&silence, PATIENCE, Duration::MAX).await);
        silence.heard();
        assert_eq!(ask(&silence, PATIENCE, MOMENT).await.0.expect("it answers"), 7);
        silence.nothing_since(Instant::now(), PAUSE);
        assert_eq!(refused(ask(&silence, PATIENCE, MOMENT).await).0, Duration::ZERO, "the watch can say so, too");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_slow_with_one_answer_and_gives_others_is_not_silent() {
        let silence = Silence::default();
        let (slow, quick) = tokio::join!(ask(&silence, PATIENCE, Duration::MAX), ask(&silence, PATIENCE, MOMENT));
        assert_eq!((refused(slow).0.as_secs(), quick.0.expect("an answer")), (2, 7));
        assert_eq!(ask(&silence, PATIENCE, MOMENT).await.0.expect("an answer"), 7);
        assert_eq!(ask(&silence, LONGEST, 5 * PATIENCE).await.0.expect("a slow one"), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_whose_asker_goes_away_keeps_nobody_from_asking_later() {
        let silence = Silence::default();
        refused(ask(&silence, PATIENCE, Duration::MAX).await);
        tokio::time::advance(PAUSE).await;
        timeout(MOMENT, ask(&silence, PATIENCE, Duration::MAX)).await.expect_err("it has gone away");
        refused(ask(&silence, PATIENCE, MOMENT).await);
        tokio::time::advance(PATIENCE + PAUSE).await;
        assert_eq!(ask(&silence, PATIENCE, MOMENT).await.0.expect("an answer"), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_breaks_is_no_word_and_a_refusal_is_one() {
        let silence = Silence::default();
        silence.nothing_since(Instant::now(), Duration::ZERO);
        let broken = || Status::from_error(Box::new(std::io::Error::other("broken")));
        let said: Result<u32, Status> = silence.ask(PATIENCE, async { Err(broken()) }).await;
        said.expect_err("broken");
        assert_eq!(refused(ask(&silence, PATIENCE, MOMENT).await).0, Duration::ZERO, "it is as silent as before");
        tokio::time::advance(PATIENCE + PAUSE).await;
        let said: Result<u32, Status> = silence.ask(PATIENCE, async { Err(Status::not_found("no")) }).await;
        assert_eq!(said.expect_err("refused").code(), Code::NotFound);
        assert_eq!(ask(&silence, PATIENCE, MOMENT).await.0.expect("it speaks"), 7);
    }
}
