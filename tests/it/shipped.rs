//! What is shipped: the grammar rows.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::support::{Up, repository};

#[tokio::test(flavor = "multi_thread")]
async fn no_held_out_sentence_of_the_shipped_rows_is_trained_on() {
    let up = Up::start().await;
    let file = repository().join("data/grammar.csv").display().to_string();
    let columns = ["--id", "id", "--input", "text", "--target", "expected text", "--label", "language"];
    let demo = ["--template", "Correct the grammar: {input}", "--validation", "0.1", "--max-label-ratio", "1.6"];
    let pushed = up.cli().json(&[&["dataset", "push", &file, "--name", "grammar"][..], &columns, &demo].concat());
    let report = up.cli().json(&["dataset", "report", "grammar"]);
    for reason in ["duplicate", "balanced", "empty_input"] {
        assert!(report["dropped"][reason].as_u64() > Some(0), "{reason} rows are among the shipped ones: {report}");
    }

    let store = up.state.join("store");
    let manifest = std::fs::read(store.join("datasets/grammar/00000001.json")).expect("the manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let (train, held_out) = (rows(&store, &manifest["train"]), rows(&store, &manifest["validation"]));
    assert_eq!(Some(train.len() as u64), pushed["rows_train"].as_u64());
    assert!(held_out.len() >= 200 && train.len() >= 2000, "{} and {} rows", train.len(), held_out.len());

    let sentences = |rows: &[Value], field: &str| -> BTreeSet<String> {
        rows.iter().filter_map(|row| row[field].as_str()).map(normal).collect()
    };
    for (one, other) in [("input", "input"), ("input", "target"), ("target", "target"), ("target", "input")] {
        let (held_out, train) = (sentences(&held_out, one), sentences(&train, other));
        let shared: Vec<_> = held_out.intersection(&train).take(3).collect();
        assert!(shared.is_empty(), "held-out {one}s that are {other}s of training rows: {shared:?}");
    }
}

/// A sentence without what does not tell it from another: case, punctuation, spaces.
fn normal(sentence: &str) -> String {
    let kept = sentence.chars().filter(|c| c.is_alphanumeric() || c.is_whitespace()).collect::<String>();
    kept.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn rows(store: &Path, digest: &Value) -> Vec<Value> {
    let hex = digest.as_str().expect("a digest").trim_start_matches("sha256:");
    let text = std::fs::read_to_string(store.join("blobs/sha256").join(&hex[..2]).join(hex)).expect("a blob");
    text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}
