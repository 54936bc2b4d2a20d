//! How tokens are chosen: penalties, stop tokens, constraints, log-probabilities.

use tailor_engine::{Constraint, EndReason, EngineOptions, Event, GenerateJob, Logprobs, Sampling};

use crate::{TinyBase, job, prompt, read};

/// Every token must be one of these, and so many of them make an answer.
#[derive(Debug)]
struct OneOf(Vec<u32>, usize);

impl Constraint for OneOf {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let allowed = |token: usize| self.0.contains(&(token as u32));
        logits.iter_mut().enumerate().filter(|(at, _)| !allowed(*at)).for_each(|(_, l)| *l = f32::NEG_INFINITY);
        if self.0.is_empty() { Err("nothing is allowed".into()) } else { Ok(()) }
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        assert!(self.0.contains(&token));
        self.1 -= 1;
        Ok(self.1 > 0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_binds_its_own_sequence_alone_and_ends_it() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let constraint = |allowed: &[u32]| Some(Box::new(OneOf(allowed.to_vec(), 5)) as Box<dyn Constraint>);
    let bound = GenerateJob { constraint: constraint(&[30, 31, 32]), ..job(prompt(3), None, 20) };
    let bound = engine.generate(bound).await.expect("accepted");
    let impossible = GenerateJob { constraint: constraint(&[]), ..job(prompt(3), None, 20) };
    let impossible = engine.generate(impossible).await.expect("accepted");
    let free = engine.generate(job(prompt(3), None, 20)).await.expect("accepted");
    let (tokens, reason) = read(bound).await.expect("answers");
    assert_eq!((tokens.len(), reason), (5, EndReason::Stop));
    assert!(tokens.iter().all(|token| (30..=32).contains(token)), "{tokens:?}");
    assert!(read(impossible).await.expect_err("fails").to_string().contains("nothing is allowed"));
    assert_eq!(read(free).await.expect("answers").0, tiny.greedy(&prompt(3), None, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_token_ends_the_answer_and_is_not_part_of_it() {
    for tiny in TinyBase::all() {
        let engine = tiny.engine(EngineOptions::default()).await;
        let whole = tiny.greedy(&prompt(4), None, 12);
        let at = whole.iter().position(|token| *token != whole[0]).unwrap_or(0);
        let stop_ids = vec![whole[at]];
        let stopped = engine.generate(GenerateJob { stop_ids, ..job(prompt(4), None, 12) }).await.expect("accepted");
        assert_eq!(read(stopped).await.expect("answers"), (whole[..at].to_vec(), EndReason::Stop));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_penalty_and_a_bias_change_the_answer() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let plain = tiny.greedy(&prompt(2), None, 24);
    let with = async |sampling: Sampling| {
        let stream = engine.generate(GenerateJob { sampling, ..job(prompt(2), None, 24) }).await.expect("accepted");
        read(stream).await.expect("answers").0
    };
    assert_eq!(with(Sampling::GREEDY).await, plain);
    let banned = Sampling { logit_bias: vec![(plain[0], -1000.0)], ..Sampling::GREEDY };
    assert!(!with(banned).await.contains(&plain[0]));
    let fresh = with(Sampling { presence_penalty: 100.0, ..Sampling::GREEDY }).await;
    let mut different = fresh.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), fresh.len(), "no token comes twice: {fresh:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_are_those_that_scoring_gives() {
    for tiny in TinyBase::all() {
        let engine = tiny.engine(EngineOptions::default()).await;
        let request = GenerateJob { top_logprobs: Some(3), ..job(prompt(5), None, 8) };
        let mut stream = engine.generate(request).await.expect("accepted");
        let (mut tokens, mut found): (Vec<u32>, Vec<Logprobs>) = Default::default();
        while let Some(event) = stream.recv().await {
            if let Event::Token { id, logprobs } = event.expect("an event") {
                tokens.push(id);
                found.push(*logprobs.expect("asked for"));
            }
        }
        assert!(!tokens.is_empty());
        let score = tailor_engine::ScoreJob::new(prompt(5), tokens.clone(), None);
        let scores = engine.score(score).await.expect("scores");
        for ((token, found), score) in tokens.iter().zip(&found).zip(scores) {
            assert!((found.chosen - score.expect("predicted")).abs() < 1e-4, "{found:?} {score:?}");
            assert_eq!(found.top[0], (*token, found.chosen), "greedy takes the likeliest");
            assert!(found.top.len() == 3 && found.top[1].1 >= found.top[2].1);
        }
        let many = GenerateJob { top_logprobs: Some(21), ..job(prompt(5), None, 8) };
        assert!(engine.generate(many).await.expect_err("refused").to_string().contains("at most 20"));
    }
}
