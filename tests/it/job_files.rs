//! `tailor train -f`: one job file for each thing that can be configured, each trained to a published version.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::process::repository;
use crate::support::{Cli, Family, Up, rows};

/// The files of `tests/jobs`, by name.
fn job_files() -> Vec<PathBuf> {
    let folder = repository().join("tests/jobs");
    let mut files: Vec<_> = std::fs::read_dir(folder).expect("tests/jobs").map(|e| e.expect("entry").path()).collect();
    files.sort();
    files
}

fn name(file: &std::path::Path) -> String {
    file.file_stem().expect("a name").to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_job_file_trains_and_publishes() {
    let mut up = Up::start().await;
    let cli = up.cli();
    prepare(&up, &cli);
    let mut seen = BTreeSet::new();
    for file in job_files() {
        let (adapter, path) = (name(&file), file.display().to_string());
        let lines = cli.lines(&["train", "-f", &path]);
        let job = lines.last().expect("the job");
        assert_eq!((&job["state"], &job["adapter_version"]), (&"SUCCEEDED".into(), &1.into()), "{adapter}: {job}");
        let notes: Vec<&str> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
        let settings = cli.json(&["job", "show", job["id"].as_str().expect("id")]);
        shows(&adapter, &settings, &notes);
        let folder = up.folder.join(format!("peft-{adapter}")).display().to_string();
        cli.json(&["adapter", "export", &format!("{adapter}@1"), &folder]);
        let answer =
            cli.json(&["score", "--adapter", &format!("{adapter}@1"), "--prompt-ids", "40,41", "--token-ids", "42,43"]);
        assert!(answer["tokens"][1]["logprob"].as_f64().is_some_and(|logprob| logprob < 0.0), "{adapter}: {answer}");
        seen.insert(adapter);
    }
    assert!(seen.len() >= 17, "{seen:?}");
    assert_eq!(up.stop(), Some(0));
}

fn prepare(up: &Up, cli: &Cli) {
    let file = up.folder.join("rows.csv");
    std::fs::write(&file, rows::csv(60)).expect("write rows");
    cli.json(&["dataset", "push", &file.display().to_string(), "--name", "rows", "--template", "Polish: {input}"]);
    let pair = |n: usize| json!({"prompt": format!("say {n}"), "chosen": format!("It is {n}."), "rejected": format!("no {n}")});
    let chat = |n: usize| {
        let say = |role: &str, content: String| json!({"role": role, "content": content});
        json!({"messages": [say("user", format!("first {n}")), say("assistant", format!("Reply {n}.")),
            say("user", format!("then {n}")), say("assistant", format!("Last {n}!"))]})
    };
    for (name, text) in [("pairs", lines_of(pair)), ("chats", lines_of(chat))] {
        let file = up.folder.join(format!("{name}.jsonl"));
        std::fs::write(&file, text).expect("write rows");
        cli.json(&["dataset", "push", &file.display().to_string(), "--name", name]);
    }
    for family in Family::ALL {
        let folder = family.write(up.folder.path()).display().to_string();
        cli.json(&["base", "add", &folder, "--name", family.base(), "--dtype", "f32"]);
    }
}

fn lines_of(row: impl Fn(usize) -> Value) -> String {
    (0..40).map(|n| format!("{}\n", row(n))).collect()
}

/// What the file asked for stands in the job, and where it changes the run, in its story.
fn shows(adapter: &str, job: &Value, notes: &[&str]) {
    let note = |words: &str| assert!(notes.iter().any(|note| note.contains(words)), "{adapter}: {notes:?}");
    match adapter {
        "lora-variants" => assert_eq!(job["lora"]["rank_pattern"]["o_proj"], 2),
        "dora" => assert_eq!((&job["lora"]["dora"], &job["lora"]["layers"][0]), (&true.into(), &1.into())),
        "pissa" => assert_eq!(job["lora"]["init"], "pissa"),
        "prompt-tuning" => assert_eq!(job["prompt_tuning"]["virtual_tokens"], 6),
        "packed" => assert_eq!(job["train"]["grouping"], "packed"),
        "selective" => assert_eq!(job["train"]["checkpointing"], "selective"),
        "optimizer" => assert_eq!(job["train"]["optimizer"], "adamw8bit"),
        "unfreezing" => assert_eq!(job["train"]["unfreeze"][0]["layers"][0], 0),
        "early-stop" => {
            note("the loss on the tuning rows got no better");
            let steps = job["metrics"]["train_steps"].as_f64().expect("steps");
            assert!(job["metrics"]["kept_step"].as_f64() < Some(steps), "{}", job["metrics"]);
            assert!(job["metrics"]["tuning_loss"].is_number() && job["last_tuning"]["token_accuracy"].is_number());
        }
        "preference" => {
            let (accuracy, loss) = (&job["metrics"]["tuning_token_accuracy"], &job["metrics"]["tuning_loss"]);
            assert!(accuracy.as_f64() > Some(0.5) && loss.as_f64() < Some(2f64.ln()), "{}", job["metrics"]);
        }
        "budget" => note("is acceptable"),
        _ => {}
    }
}

#[test]
fn what_no_job_knows_is_refused_before_anything_is_sent() {
    let folder = tailor_testkit::TempDir::new();
    let cli = Cli::new(folder.path());
    let refused_as = |code: &str, text: &str, words: &[&str]| {
        std::fs::write(folder.join("job.yaml"), text).expect("write");
        cli.refused(&["train", "-f", "job.yaml"]).says(code, words);
    };
    let refused = |text: &str, words: &[&str]| refused_as("ERROR", text, words);
    let invalid = |text: &str, words: &[&str]| refused_as("INVALID_ARGUMENT", text, words);
    let head = "base: b\ndataset: d\nadapter: a\n";
    refused(&format!("{head}lora:\n  rnak: 8\n"), &["job.yaml", "rnak", "rank"]);
    refused(&format!("{head}train: {{ optimizer: sgd }}\n"), &["job.yaml", "sgd", "adamw8bit"]);
    invalid(&format!("{head}lora: {{ rank: 0 }}\n"), &["job.yaml", "lora.rank", "1 to 1024"]);
    invalid(&format!("{head}stop: {{ max_cost: 3 }}\n"), &["stop.max_cost", "stop.price_per_hour"]);
    refused("base: b\ndataset: d\n", &["adapter"]);
    refused("base: [", &["job.yaml"]);
    cli.refused(&["train", "-f", "missing.yaml"]).says("ERROR", &["missing.yaml", "No such file"]);
}

#[test]
fn the_schema_accepts_every_shipped_job_file_and_knows_the_codes() {
    let schema: Value = serde_json::from_str(&Cli::new(".").text(&["train", "--schema"])).expect("json");
    assert_eq!(schema["title"], "JobFile");
    let codes = schema["$defs"]["QuantCode"].to_string();
    assert!(codes.contains("nf4-single"), "{codes}");
    for section in ["lora", "prompt_tuning", "train", "evaluate", "stop", "preference"] {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
}
