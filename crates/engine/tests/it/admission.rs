//! What is let in, and what is turned away.

use tailor_domain::ErrorCode;
use tailor_engine::{Engine, EngineOptions, Error, GenerateJob, Sampling};
use tailor_testkit::TempDir;

use crate::{TinyBase, job, prompt, read};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_says_so() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions { max_batch: 1, max_queue: 2, ..EngineOptions::default() }).await;
    let mut accepted = Vec::new();
    let mut refused = None;
    // One runs and two wait; it takes a while to make 100 tokens, and none to ask.
    for n in 0..50 {
        match engine.generate(job(prompt(n), None, 100)).await {
            Ok(stream) => accepted.push((n, stream)),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let error = refused.expect("the queue is bounded");
    assert!(matches!(error, Error::QueueFull { limit: 2, .. }), "{error}");
    assert_eq!(error.code(), ErrorCode::ResourceExhausted);
    assert!(error.retryable());
    for (n, stream) in accepted {
        assert_eq!(
            read(stream).await.expect("answers").0,
            tiny.greedy(&prompt(n), None, 100),
            "who was let in is served"
        );
    }
    let later = engine.generate(job(prompt(1), None, 2)).await.expect("there is room again");
    read(later).await.expect("answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_out_of_its_limits_is_refused_with_value_and_limit() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    assert_eq!(engine.info().max_context, 128, "the base's own");
    let refuse = async |job: GenerateJob| {
        let error = engine.generate(job).await.expect_err("refused");
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
        error.to_string()
    };
    assert!(refuse(job(vec![], None, 4)).await.contains("no token"));
    assert!(refuse(job(prompt(1), None, 0)).await.contains("max_new_tokens is 0"));
    let message = refuse(job(vec![5; 100], None, 29)).await;
    assert!(message.contains("100 prompt tokens and 29 more exceed the context of 128"), "{message}");
    let message = refuse(job(vec![5, 96], None, 4)).await;
    assert!(
        message.contains("token 96 at position 1 of the prompt is outside the base's vocabulary of 96"),
        "{message}"
    );
    let hot = Sampling { temperature: f32::NAN, ..Sampling::GREEDY };
    assert!(refuse(GenerateJob { sampling: hot, ..job(prompt(1), None, 4) }).await.contains("temperature NaN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_no_base_is_an_error_at_start() {
    let folder = TempDir::new();
    let error = Engine::start(folder.path().to_owned(), EngineOptions::default()).await.err().expect("no base");
    assert!(error.to_string().contains("config.json"), "{error}");
    let none = EngineOptions { max_batch: 0, ..EngineOptions::default() };
    let error = Engine::start(folder.path().to_owned(), none).await.err().expect("no place");
    assert_eq!(error.to_string(), "max_batch 0 is outside 1 to 4096");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_thread_ends_with_the_last_handle() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let mut stream = engine.clone().generate(job(prompt(2), None, 100)).await.expect("accepted");
    tokio::task::spawn_blocking(move || drop(engine)).await.expect("joins");
    let mut last = None;
    while let Some(event) = stream.recv().await {
        last = Some(event);
    }
    // Either it had just finished, or it is told that the engine has gone.
    assert!(matches!(last, Some(Ok(tailor_engine::Event::End { .. }) | Err(Error::Stopped))), "{last:?}");
}
