//! Who is let in when there is more than can be done.

use std::time::{Duration, Instant};

use tailor_domain::ErrorCode;
use tailor_engine::{EngineOptions, Error, GenerateJob, ScoreJob};

use crate::{TinyBase, job, prompt, read};

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_bounded_by_tokens_and_says_when_to_come_again() {
    let tiny = TinyBase::llama();
    let options = EngineOptions { max_batch: 1, max_queue_tokens: 150, ..EngineOptions::default() };
    let engine = tiny.engine(options).await;
    let (mut accepted, mut refused) = (Vec::new(), None);
    for n in 0..50 {
        match engine.generate(job(prompt(n), None, 90)).await {
            Ok(stream) => accepted.push(stream),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let error = refused.expect("tokens are bounded though 256 requests may wait");
    assert!(matches!(error, Error::TokensFull { limit: 150, .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::ResourceExhausted);
    let wait = error.retry_after().expect("it knows");
    assert!(wait >= Duration::from_millis(100) && wait <= Duration::from_secs(60), "{wait:?}");
    assert!(accepted.len() <= 4, "{} were let in", accepted.len());
    for stream in accepted {
        read(stream).await.expect("answers");
    }
    assert_eq!(engine.usage().waiting_tokens, 0);
    let alone = engine.generate(job(vec![5; 60], None, 60)).await.expect("there is room again");
    read(alone).await.expect("answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_tenant_does_not_hold_up_another() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions { max_batch: 1, ..EngineOptions::default() }).await;
    let of = |tenant: &str| GenerateJob { tenant: tenant.into(), ..job(prompt(2), None, 40) };
    let mut flood = Vec::new();
    for _ in 0..40 {
        flood.push(engine.generate(of("flood")).await.expect("accepted"));
    }
    let quiet = engine.generate(of("quiet")).await.expect("accepted");
    read(quiet).await.expect("answers");
    let waiting = engine.usage().waiting;
    assert!(waiting > 20, "the quiet one went before most of the flood; {waiting} still wait");
    drop(flood);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_tenant_leaves_another_a_place_whether_it_asks_for_answers_or_for_scores() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions { max_batch: 1, max_queue: 64, ..EngineOptions::default() }).await;
    let of = |tenant: &str| GenerateJob { tenant: tenant.into(), ..job(prompt(2), None, 100) };
    let mut flood = Vec::new();
    let error = loop {
        match engine.generate(of("flood")).await {
            Ok(stream) => flood.push(stream),
            Err(error) => break error,
        }
        assert!(flood.len() < 1000, "the queue is bounded");
    };
    assert!(matches!(&error, Error::ShareFull { tenant, .. } if tenant == "flood"), "{error}");
    assert_eq!(error.code(), ErrorCode::ResourceExhausted);
    assert!(error.retry_after().is_some());
    let score = |tenant: &str| ScoreJob { tenant: tenant.into(), ..ScoreJob::new(prompt(1), prompt(5), None) };
    let (scores, quiet) = tokio::join!(engine.score(score("quiet")), engine.generate(of("quiet")));
    assert_eq!(scores.expect("scores").len(), prompt(5).len());
    read(quiet.expect("accepted")).await.expect("answers");
    assert!(engine.usage().waiting > 30, "most of the flood still waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_score_that_comes_too_late_is_not_made() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let late = ScoreJob { deadline: Some(Instant::now()), ..ScoreJob::new(prompt(1), prompt(5), None) };
    let error = engine.score(late).await.expect_err("too late");
    assert_eq!(error.code(), ErrorCode::DeadlineExceeded, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_sequence_whether_it_waits_or_runs() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions { max_batch: 1, ..EngineOptions::default() }).await;
    let long = engine.generate(job(prompt(3), None, 100)).await.expect("accepted");
    let passed = Some(Instant::now());
    let late = GenerateJob { deadline: passed, ..job(prompt(4), None, 100) };
    let error = read(engine.generate(late).await.expect("accepted")).await.expect_err("too late");
    assert!(matches!(error, Error::Deadline), "{error}");
    let soon = Some(Instant::now() + Duration::from_secs(600));
    let timely = GenerateJob { deadline: soon, ..job(prompt(4), None, 5) };
    let timely = engine.generate(timely).await.expect("accepted");
    assert_eq!(read(timely).await.expect("answers").0, tiny.greedy(&prompt(4), None, 5));
    read(long).await.expect("answers");
}
