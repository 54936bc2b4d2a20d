//! A base of the other family, whose input an encoder reads at once: behind an edge it answers, streams and scores as it does in
//! one process, and an engine's death costs as little.

use std::collections::BTreeSet;
use std::sync::Arc;

use tailor_pb::inference::{GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse};

use super::lose_an_engine;
use crate::support::answers::{self, stream};
use crate::support::base::only_characters;
use crate::support::clients::Addresses;
use crate::support::{Family, Fleet};

const NAMES: [&str; 3] = ["", "grammar@1", "grammar@2"];

/// Text from its first token on, so that whoever has said something has been heard. Every other answer is drawn with a seed: a
/// random base left to itself may say the same to everybody.
fn request(number: usize, tokens: u32) -> GenerateRequest {
    let request = answers::request(Family::T5, NAMES[number % NAMES.len()], number, tokens);
    GenerateRequest {
        logit_bias: only_characters().collect(),
        temperature: if number.is_multiple_of(2) { 1.0 } else { 0.0 },
        seed: Some(number as u64),
        ..request
    }
}

/// What does not depend on who was asked before.
fn without_cache(said: GenerateResponse) -> GenerateResponse {
    GenerateResponse { cached_tokens: 0, ..said }
}

async fn score(at: &Addresses, number: usize) -> ScoreResponse {
    let adapter = NAMES[number % NAMES.len()];
    let base = if adapter.is_empty() { Family::T5.base() } else { "" };
    let request = ScoreRequest {
        base: base.into(),
        adapter: adapter.into(),
        prompt: format!("anna sees {number} boats"),
        text: "Anna sees boats.".into(),
        ..Default::default()
    };
    at.gateway().score(request).await.expect("scores").into_inner()
}

/// Of each token; an encoder-decoder has one for the first, too.
fn logprobs(scored: &ScoreResponse) -> Vec<f64> {
    scored.tokens.iter().map(|token| token.logprob.expect("its start token predicts it")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoder_decoder_answers_streams_and_scores_as_a_single_gateway_does_several_at_once() {
    const ASKED: usize = 18;
    const TOKENS: u32 = 40;
    let fleet = Fleet::with_engines(2, &[]).await;
    fleet.publish_on(Family::T5, 2);
    let (at, alone) = (fleet.at(0, 0), fleet.another_gateway().await);
    let mut there = Vec::new();
    for number in 0..ASKED {
        let said = answers::ask(&alone.addresses, request(number, TOKENS)).await.expect("an answer");
        assert!(said.completion_tokens == TOKENS && !said.text.is_empty(), "{said:?}");
        there.push(without_cache(said));
    }
    let texts: BTreeSet<_> = there.iter().map(|said| said.text.as_str()).collect();
    assert!(texts.len() > ASKED / 2, "what is compared can be told apart: {texts:?}");

    let whole = futures::future::join_all((0..ASKED).map(|number| answers::ask(&at, request(number, TOKENS)))).await;
    for (said, there) in whole.into_iter().zip(&there) {
        assert_eq!(without_cache(said.expect("an answer")), *there);
    }
    let streams = (0..ASKED).map(|number| stream(at.clone(), request(number, TOKENS), Arc::default()));
    for (streamed, there) in futures::future::join_all(streams).await.into_iter().zip(&there) {
        let end = streamed.end.expect("a whole answer");
        assert!(streamed.chunks > 1, "piece by piece");
        assert_eq!(GenerateResponse { text: streamed.text, ..without_cache(end) }, *there);
    }

    let mut scored_there = Vec::new();
    for number in 0..6 {
        scored_there.push(score(&alone.addresses, number).await);
    }
    assert_ne!(logprobs(&scored_there[0]), logprobs(&scored_there[3]), "the base alone, of two inputs");
    let scored = futures::future::join_all((0..6).map(|number| score(&at, number))).await;
    for (scored, there) in scored.iter().zip(&scored_there) {
        assert_eq!((&scored.adapter_digest, scored.tokens.len()), (&there.adapter_digest, there.tokens.len()));
        // Not to the bit: what is scored together goes through the products together.
        for (here, there) in logprobs(scored).into_iter().zip(logprobs(there)) {
            assert!((here - there).abs() < 1e-3, "{here} and {there}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engines_unstarted_requests_of_an_encoder_decoder_move_and_its_started_ones_end_clearly() {
    let mut fleet = Fleet::with_engines(2, &[("GATEWAY__MAX_BATCH", "3")]).await;
    fleet.publish_on(Family::T5, 2);
    lose_an_engine(&mut fleet, 12, |number| request(number, 200)).await;
}
