//! Our figures and renderings beside those of sacrebleu, nltk and transformers (tests/golden/make_text.py).

mod chats;
mod tokenizers;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tailor_text::metrics::{Scorer, chrf, gleu};
use tailor_text::{ChatTemplate, Message, Tokenizer};

#[derive(Deserialize)]
struct Metrics {
    rows: Vec<MetricRow>,
    corpus_chrf: f64,
}

#[derive(Deserialize)]
struct MetricRow {
    prediction: String,
    reference: String,
    chrf: f64,
    gleu: f64,
}

#[derive(Deserialize)]
struct Chat {
    templates: BTreeMap<String, String>,
    cases: Vec<ChatCase>,
}

#[derive(Deserialize)]
struct ChatCase {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    /// Absent where the template refuses the messages.
    rendered: Option<String>,
}

fn golden<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/text").join(name);
    let bytes = std::fs::read(&path).expect("the fixture is committed");
    serde_json::from_slice(&bytes).expect("the fixture is JSON")
}

#[test]
fn metrics_agree_with_sacrebleu_and_nltk() {
    let golden: Metrics = golden("metrics.json");
    let mut scorer = Scorer::default();
    for row in &golden.rows {
        let (prediction, reference) = (row.prediction.as_str(), row.reference.as_str());
        let (ours_chrf, ours_gleu) = (chrf(prediction, reference), gleu(prediction, reference));
        // The same sums in f64 in another order.
        assert!((ours_chrf - row.chrf).abs() < 1e-9, "chrf of {prediction:?} {reference:?}: {ours_chrf} {}", row.chrf);
        assert!((ours_gleu - row.gleu).abs() < 1e-9, "gleu of {prediction:?} {reference:?}: {ours_gleu} {}", row.gleu);
        scorer.add(prediction, reference, "");
    }
    let corpus = scorer.finish()["chrf"];
    assert!((corpus - golden.corpus_chrf).abs() < 1e-9, "corpus chrf {corpus} {}", golden.corpus_chrf);
}

#[test]
fn chats_are_rendered_as_transformers_renders_them() {
    let golden: Chat = golden("chat.json");
    for case in &golden.cases {
        let special = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.into(), token.into()));
        let template = ChatTemplate::parse(&golden.templates[&case.template], special.into())
            .unwrap_or_else(|error| panic!("{}: {error}", case.template));
        let ours = template.render(&case.messages, case.add_generation_prompt);
        match (&case.rendered, ours) {
            (Some(theirs), Ok(ours)) => assert_eq!(&ours, theirs, "template {}", case.template),
            (None, Err(_)) => {}
            (None, Ok(ours)) => panic!("template {} should refuse, gave {ours:?}", case.template),
            (Some(_), Err(error)) => panic!("template {} of {:?}: {error}", case.template, case.messages),
        }
    }
}

#[test]
fn a_folder_without_a_tokenizer_is_named() {
    let error = Tokenizer::open(Path::new("/nonexistent/base")).expect_err("no such folder");
    assert!(error.to_string().contains("tokenizer.json") && error.to_string().contains("/nonexistent/base"), "{error}");
}
