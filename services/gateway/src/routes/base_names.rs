//! What bases' names mean: asked of the registry once, however many want to know at the same time, and remembered.
//!
//! The watch tells of no bases, so that an answer is taken for true as long as an alias is of which nothing was heard, and no
//! longer. What the registry denies is not remembered at all: the base may be registered in the next moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tailor_domain::{BaseManifest, BaseName};
use tokio::sync::OnceCell;
use tonic::{Code, Status};

/// Bases that are remembered; beyond it the one whose answer is oldest is forgotten.
const MAX_REMEMBERED: usize = 1000;

pub type Answer = Result<Arc<BaseManifest>, Status>;

/// A question on its way, of all who have it; empty until it is answered.
type Question = Arc<OnceCell<Answer>>;

#[derive(Default)]
pub struct BaseNames(Mutex<Names>);

#[derive(Default)]
struct Names {
    said: HashMap<BaseName, Said>,
    asked: HashMap<BaseName, Question>,
}

struct Said {
    manifest: Arc<BaseManifest>,
    /// When it was asked: what the answer says was so then, or later.
    at: Instant,
}

impl BaseNames {
    /// What a name means, by an answer of within `fresh`. `ask` is asked only where there is none and nobody is asking.
    ///
    /// # Errors
    /// What `ask` says.
    pub async fn find<F>(&self, name: &BaseName, fresh: Duration, ask: impl Fn() -> F) -> Answer
    where
        F: Future<Output = Answer>,
    {
        if let Some(manifest) = self.fresh(name, fresh) {
            return Ok(manifest);
        }
        let (answer, is_joined) = self.ask(name, &ask).await;
        match answer {
            // It was on its way before this caller came: what it was about may have come to be since.
            Err(status) if is_joined && status.code() == Code::NotFound => self.ask(name, &ask).await.0,
            answer => answer,
        }
    }

    /// What the registry has said within `fresh`.
    pub fn fresh(&self, name: &BaseName, fresh: Duration) -> Option<Arc<BaseManifest>> {
        self.names().said.get(name).filter(|said| said.at.elapsed() <= fresh).map(|said| said.manifest.clone())
    }

    /// What the registry last said, however long ago.
    pub fn last(&self, name: &BaseName) -> Option<Arc<BaseManifest>> {
        self.names().said.get(name).map(|said| said.manifest.clone())
    }

    /// The answer, and whether the question was another's.
    async fn ask<F>(&self, name: &BaseName, ask: &impl Fn() -> F) -> (Answer, bool)
    where
        F: Future<Output = Answer>,
    {
        let (question, is_joined) = self.question(name);
        let answer = question.get_or_init(|| async {
            let at = Instant::now();
            let answer = ask().await;
            self.hear(name, &answer, at);
            answer
        });
        (answer.await.clone(), is_joined)
    }

    fn question(&self, name: &BaseName) -> (Question, bool) {
        let mut names = self.names();
        let asked = &mut names.asked;
        // Those that are answered, and those whose askers have all gone away.
        asked.retain(|_, question| Arc::strong_count(question) > 1 && !question.initialized());
        if let Some(question) = asked.get(name) {
            return (question.clone(), true);
        }
        let question = Question::default();
        asked.insert(name.clone(), question.clone());
        (question, false)
    }

    fn hear(&self, name: &BaseName, answer: &Answer, at: Instant) {
        let mut names = self.names();
        let said = &mut names.said;
        match answer {
            Ok(manifest) => {
                if said.len() >= MAX_REMEMBERED && !said.contains_key(name) {
                    let oldest = said.iter().min_by_key(|(_, said)| said.at).map(|(name, _)| name.clone());
                    if let Some(oldest) = oldest {
                        said.remove(&oldest);
                    }
                }
                said.insert(name.clone(), Said { manifest: manifest.clone(), at });
            }
            Err(status) if status.code() == Code::NotFound => drop(said.remove(name)),
            Err(_) => {}
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tailor_domain::{Digest, Family, QuantCode};
    use tokio::sync::Notify;

    use super::*;

    fn name(name: &str) -> BaseName {
        BaseName::try_new(name).expect("a name")
    }

    fn manifest(base: &str) -> Arc<BaseManifest> {
        Arc::new(BaseManifest {
            name: name(base),
            fingerprint: Digest::of(base.as_bytes()),
            family: Family::Decoder,
            model_type: "llama".into(),
            quant: QuantCode::Nf4,
            dtype: "f32".into(),
            parameters: 1,
            files: Vec::new(),
            created_at_ms: 1,
            merged_from: None,
        })
    }

    #[tokio::test]
    async fn many_who_want_to_know_share_one_question_and_its_answer_lasts_for_a_while() {
        let (names, little, asked) = (BaseNames::default(), name("little"), AtomicUsize::new(0));
        let ask = || async {
            asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok::<_, Status>(manifest("little"))
        };
        let all = futures::future::join_all((0..50).map(|_| names.find(&little, Duration::MAX, ask))).await;
        assert!(all.iter().all(|said| said.as_ref().is_ok_and(|said| said.name == little)));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        names.find(&little, Duration::MAX, ask).await.expect("it is known");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        names.find(&little, Duration::ZERO, ask).await.expect("it is there");
        assert_eq!(asked.load(Ordering::SeqCst), 2, "what was said is too old");
    }

    #[tokio::test]
    async fn a_base_that_is_registered_meanwhile_is_found_though_a_question_was_on_its_way() {
        let (names, little, is_there, go) =
            (BaseNames::default(), name("little"), AtomicBool::new(false), Notify::new());
        let ask = || async {
            if is_there.load(Ordering::SeqCst) {
                return Ok(manifest("little"));
            }
            go.notified().await;
            Err(Status::not_found("no such base"))
        };
        let early = names.find(&little, Duration::MAX, ask);
        let late = async {
            is_there.store(true, Ordering::SeqCst);
            go.notify_one();
            names.find(&little, Duration::MAX, ask).await
        };
        let (early, late) = tokio::join!(early, late);
        assert_eq!(early.expect_err("it was not there yet").code(), Code::NotFound);
        assert_eq!(late.expect("it is there").name, little);
    }

    #[tokio::test]
    async fn what_the_registry_denies_is_forgotten_and_what_it_cannot_say_is_not() {
        let (names, little) = (BaseNames::default(), name("little"));
        names.find(&little, Duration::ZERO, || async { Ok(manifest("little")) }).await.expect("it is there");
        let away = names.find(&little, Duration::ZERO, || async { Err(Status::unavailable("away")) }).await;
        assert_eq!(away.expect_err("nobody says").code(), Code::Unavailable);
        assert_eq!(names.last(&little).expect("it was there").name, little);
        let gone = names.find(&little, Duration::ZERO, || async { Err(Status::not_found("gone")) }).await;
        assert_eq!(gone.expect_err("it is gone").code(), Code::NotFound);
        assert!(names.last(&little).is_none());
    }

    #[tokio::test]
    async fn an_asker_that_goes_away_leaves_no_question_behind_and_no_more_is_remembered_than_the_limit() {
        let (names, little) = (BaseNames::default(), name("little"));
        let never = || async {
            std::future::pending::<()>().await;
            Err(Status::unavailable("never"))
        };
        let asking = names.find(&little, Duration::MAX, never);
        tokio::time::timeout(Duration::from_millis(5), asking).await.expect_err("nobody answers");
        for number in 0..=MAX_REMEMBERED {
            let base = format!("base-{number}");
            names.find(&name(&base), Duration::MAX, || async { Ok(manifest(&base)) }).await.expect("it is there");
        }
        assert!(names.names().asked.len() <= 1, "the last question at most");
        assert_eq!(names.names().said.len(), MAX_REMEMBERED);
        assert!(names.last(&name("base-0")).is_none() && names.last(&name("base-1")).is_some(), "the oldest has gone");
        names.find(&little, Duration::MAX, || async { Ok(manifest("little")) }).await.expect("asked anew");
    }
}
