//! Log-probabilities by the real `peft` on bases that the real bitsandbytes quantised: what `tailor score` must say of the
//! same ids. `cargo xtask golden scores` makes the files.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Up, repository};

/// Both sides compute in f32; orders of summation differ.
const ATOL: f64 = 1e-4;

fn fixture() -> PathBuf {
    repository().join("tests/golden/scores")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_peft_adapter_scores_a_decoder_as_peft_does() {
    scores_agree("llama").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_peft_adapter_scores_an_encoder_decoder_as_peft_does() {
    scores_agree("t5").await;
}

async fn scores_agree(family: &str) {
    let up = Up::start().await;
    let cli = up.cli();
    let folder = fixture().join(family);
    let path = |name: &str| folder.join(name).display().to_string();
    cli.json(&["base", "add", &path("base"), "--name", "golden", "--dtype", "f32"]);
    cli.json(&["adapter", "import", &path("adapter"), "--name", "golden", "--base", "golden"]);
    let cases = read(&folder.join("scores.json"));
    let cases = cases["cases"].as_array().expect("cases");
    assert!(cases.len() >= 4, "{} cases", cases.len());
    let mut worst: f64 = 0.0;
    for case in cases {
        let ids = |name: &str| {
            let ids = case[name].as_array().expect("ids").iter().map(|id| id.to_string());
            ids.collect::<Vec<_>>().join(",")
        };
        for (model, wanted) in [(["--adapter", "golden"], "with_adapter"), (["--base", "golden"], "base_alone")] {
            let mut call = vec!["score", model[0], model[1]];
            let (prompt, tokens) = (ids("prompt_ids"), ids("token_ids"));
            if !prompt.is_empty() {
                call.extend(["--prompt-ids", &prompt]);
            }
            call.extend(["--token-ids", &tokens]);
            let scored = cli.json(&call);
            let scored: Vec<_> =
                scored["tokens"].as_array().expect("tokens").iter().map(|t| t["logprob"].as_f64()).collect();
            let wanted: Vec<_> = case[wanted].as_array().expect("scores").iter().map(Value::as_f64).collect();
            assert_eq!(scored.len(), wanted.len(), "{case}");
            for (ours, theirs) in scored.iter().zip(&wanted) {
                match (ours, theirs) {
                    (Some(ours), Some(theirs)) => worst = worst.max((ours - theirs).abs()),
                    _ => assert_eq!(ours, theirs, "only what nothing predicts has no score: {scored:?} {wanted:?}"),
                }
            }
        }
    }
    assert!(worst <= ATOL, "{family}: scores differ by {worst:.2e}, more than {ATOL:.0e}");
    println!("{family}: worst difference {worst:.2e}");
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a golden file")).expect("JSON")
}
