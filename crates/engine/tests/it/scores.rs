//! What is scored.

use tailor_domain::ErrorCode;
use tailor_engine::{EngineOptions, ScoreJob};
use tailor_models::{Input, LoraSet, Pass};
use tch::{Kind, Tensor};

use crate::{TinyBase, prompt};

fn ids(ids: &[u32]) -> Tensor {
    Tensor::from_slice(&ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>()).unsqueeze(0)
}

/// log_softmax of a plain forward pass over the whole sequence.
fn plain(tiny: &TinyBase, prompt: &[u32], tokens: &[u32], set: &LoraSet) -> Vec<Option<f32>> {
    let pass = Pass::one(set);
    let decoder = tiny.base.family() == tailor_domain::Family::Decoder;
    let (hidden, from) = if decoder {
        let whole = ids(&[prompt, tokens].concat());
        let hidden = tiny.base.hidden(&Input::Decoder { ids: &whole, mask: None }, &pass);
        (hidden.expect("runs"), prompt.len() as i64 - 1)
    } else {
        let (encoder, decoder) = (ids(prompt), ids(&[&[0], tokens].concat()));
        let input = Input::EncoderDecoder { ids: &encoder, mask: None, decoder_ids: &decoder };
        (tiny.base.hidden(&input, &pass).expect("runs"), 0)
    };
    let table = tiny.base.head(&hidden, &pass).log_softmax(-1, Kind::Float);
    let score = |(at, token): (i64, &u32)| {
        (from + at >= 0).then(|| table.double_value(&[0, from + at, i64::from(*token)]) as f32)
    };
    (0..).zip(tokens).map(score).collect()
}

fn assert_close(got: &[Option<f32>], wanted: &[Option<f32>]) {
    assert_eq!(got.len(), wanted.len());
    for (got, wanted) in got.iter().zip(wanted) {
        match (got, wanted) {
            (Some(got), Some(wanted)) => assert!((got - wanted).abs() < 1e-5, "{got} for {wanted}"),
            (got, wanted) => assert_eq!(got, wanted),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_equal_log_softmax_of_a_plain_forward() {
    for tiny in TinyBase::all() {
        let engine = tiny.engine(EngineOptions::default()).await;
        let (digest, adapter) = tiny.adapter(2, 0.2);
        let set = LoraSet::from_adapter(&tiny.base, &adapter).expect("fits");
        let none = LoraSet::empty(&tiny.base);
        engine.load(digest.clone(), adapter).await.expect("loads");
        for n in 0..4 {
            let (prompt_ids, token_ids) = (prompt(n), prompt(n + 9));
            for (adapter, set) in [(None, &none), (Some(digest.clone()), &set)] {
                let job = ScoreJob::new(prompt_ids.clone(), token_ids.clone(), adapter);
                let scores = engine.score(job).await.expect("scores");
                assert_close(&scores, &plain(&tiny, &prompt_ids, &token_ids, set));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_texts_are_scored_in_pieces_from_what_the_cache_has_of_their_prompt() {
    for tiny in TinyBase::all() {
        let engine = tiny.engine(EngineOptions { max_step_tokens: 5, ..EngineOptions::default() }).await;
        let text = |from: u32, count: u32| (0..count).map(|at| 10 + (from + at * 7) % 80).collect::<Vec<u32>>();
        let (prompt_ids, none) = (text(3, 40), LoraSet::empty(&tiny.base));
        let answer = engine.generate(crate::job(prompt_ids.clone(), None, 60)).await.expect("accepted");
        for n in 0..3 {
            let token_ids = text(n, 30 + n);
            let scores =
                engine.score(ScoreJob::new(prompt_ids.clone(), token_ids.clone(), None)).await.expect("scores");
            assert_close(&scores, &plain(&tiny, &prompt_ids, &token_ids, &none));
        }
        let answered = crate::read(answer).await.expect("answers").0;
        assert_eq!(answered, tiny.greedy(&prompt_ids, None, 60), "what is scored beside it changes nothing");
        let usage = engine.usage();
        assert!(usage.steps > 3 * 30 / 5, "in pieces: {usage:?}");
        assert!(usage.cached_tokens >= 3 * 32, "the prompt is computed once: {usage:?}");
        assert_eq!(usage.kv_blocks_held, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoders_first_token_has_no_score_and_an_encoder_needs_an_input() {
    let [llama, t5] = TinyBase::all();
    let job = |token_ids: &[u32]| ScoreJob::new(vec![], token_ids.to_vec(), None);
    let engine = llama.engine(EngineOptions::default()).await;
    let scores = engine.score(job(&[10, 11, 12])).await.expect("scores");
    assert_close(&scores, &plain(&llama, &[], &[10, 11, 12], &LoraSet::empty(&llama.base)));
    assert_eq!(scores[0], None);
    assert_eq!(engine.score(job(&[10])).await.expect("scores"), [None]);
    assert_eq!(engine.score(job(&[])).await.expect_err("nothing").code(), ErrorCode::InvalidArgument);

    let error = t5.engine(EngineOptions::default()).await.score(job(&[10])).await.expect_err("no input");
    assert!(error.to_string().contains("the prompt is empty"), "{error}");
}
