//! What is left of a job for people to judge it by: figures with intervals, every answer, plots, TensorBoard.

use std::process::Command;

use serde_json::Value;

use crate::support::{Cli, Family, Up, repository};

fn train(cli: &Cli, steps: &str, more: &[&str]) -> Value {
    let job = ["train", "--base", "little-t5", "--dataset", "rows", "--adapter", "judged", "--rank", "4"];
    let small = ["--epochs", "1000", "--batch", "8", "--micro-batch", "8", "--max-new-tokens", "6"];
    cli.json(&[&job[..], &small, &["--max-steps", steps], more].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_job_can_be_judged_by_its_figures_answers_and_plots() {
    let up = Up::start().await;
    up.add_base_and_rows(Family::T5).await;
    let cli = up.cli();
    let job = train(&cli, "6", &[]);
    let id = job["id"].as_str().expect("id");
    figures(&cli, &job);
    answers(&cli, id);
    plots(&up, &cli, id);
    tensorboard(&up, &cli, id);
}

fn figures(cli: &Cli, job: &Value) {
    let metric = |name: &str| job["metrics"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {job}"));
    assert_eq!(metric("rows"), 6.0);
    for name in ["exact_match", "edit_distance", "chrf", "gleu"] {
        for (prefix, end) in [("", ""), ("base_", ""), ("", "_difference")] {
            let [value, low, high] = ["", "_low", "_high"].map(|side| metric(&format!("{prefix}{name}{end}{side}")));
            assert!(low <= value && value <= high, "{prefix}{name}{end}: {low} {value} {high}");
        }
        let apart = metric(name) - metric(&format!("base_{name}"));
        assert!((apart - metric(&format!("{name}_difference"))).abs() < 1e-9, "{name}");
    }
    let shown = cli.text(&["job", "show", job["id"].as_str().expect("id")]);
    for part in ["base", "adapter", "difference", "exact match, %", "chrF", "on 6 held-out rows", "95 %"] {
        assert!(shown.contains(part), "{part:?} is missing in {shown}");
    }
    let version = cli.json(&["adapter", "show", "judged@1"]);
    assert_eq!(version["metrics"], job["metrics"], "the registry keeps them with the version");
}

fn answers(cli: &Cli, id: &str) {
    let rows = cli.lines(&["job", "predictions", id]);
    assert_eq!(rows.iter().filter_map(|row| row["row"].as_u64()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    for row in &rows {
        let (input, target) = (row["input"].as_str().expect("input"), row["target"].as_str().expect("target"));
        assert!(target.ends_with('.') && target.to_lowercase().starts_with(input), "{row}");
        for who in ["base", "adapter"] {
            let answer = &row[who];
            let text = answer["text"].as_str().expect("text");
            assert_eq!(answer["exact"], text.trim() == target, "{row}");
            assert_eq!(answer["edit_distance"] == 0, answer["exact"] == true, "{row}");
        }
    }
    let is_wrong = |row: &&Value| row["adapter"]["exact"] == false;
    assert_eq!(cli.lines(&["job", "predictions", id, "--wrong"]).len(), rows.iter().filter(is_wrong).count());
    assert_eq!(cli.lines(&["job", "predictions", id, "--limit", "2"]), rows[..2]);
    let said = cli.text(&["job", "predictions", id, "--limit", "1"]);
    for part in ["row 0", "target", "base", "adapter", "of 1 rows right"] {
        assert!(said.contains(part), "{part:?} is missing in {said}");
    }
    cli.refused(&["job", "predictions", "01m89pt81sh1trx7h1zrarn26e"]).says("NOT_FOUND", &["does not exist"]);
}

fn plots(up: &Up, cli: &Cli, id: &str) {
    let file = |name: &str| up.folder.join(name);
    let (svg, png) = (file("loss.svg"), file("loss.png"));
    let drawn = cli.json(&["job", "plot", id, "-o", &svg.display().to_string()]);
    assert_eq!(drawn["steps"], 6);
    let text = std::fs::read_to_string(&svg).expect("the plot");
    for part in ["<svg", "Training of judged@1", id, "rows@1 on little-t5", "Loss, nats per token", "optimizer steps"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    cli.text(&["job", "plot", id, "-o", &png.display().to_string()]);
    let bytes = std::fs::read(&png).expect("the plot");
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes.len() > 10_000, "{} bytes", bytes.len());
    let other = cli.refused(&["job", "plot", id, "-o", "loss.pdf"]);
    other.says("ERROR", &["loss.pdf", "FILE.svg or FILE.png"]);
}

/// The real TensorBoard reads what the log says.
fn tensorboard(up: &Up, cli: &Cli, id: &str) {
    let runs = up.folder.join("runs");
    let written = cli.json(&["job", "tensorboard", id, &runs.display().to_string()]);
    assert_eq!(written["steps"], 6);
    let Some(python) = std::env::var_os("TAILOR_TEST_PYTHON").filter(|path| !path.is_empty()) else {
        return tailor_testkit::skipped("TAILOR_TEST_PYTHON does not name a Python with tensorboard");
    };
    let mut reader = Command::new(python);
    reader.arg(repository().join("tests/python/read_events.py")).arg(runs.join(id));
    let done = reader.output().expect("run the reader");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let read: Value = serde_json::from_slice(&done.stdout).expect("tags as JSON");
    let scalars = |tag: &str| -> Vec<(u64, f32)> {
        let found = read[tag].as_array().unwrap_or_else(|| panic!("no {tag} in {read}"));
        found.iter().map(|pair| (pair[0].as_u64().expect("step"), pair[1].as_f64().expect("value") as f32)).collect()
    };
    let events = cli.lines(&["job", "watch", id]);
    let steps: Vec<&Value> = events.iter().filter_map(|event| event["steps"].as_array()).flatten().collect();
    let wanted = |list: &[&Value], name: &str| -> Vec<(u64, f32)> {
        let of = |found: &&Value| (found["step"].as_u64().expect("step"), found[name].as_f64().expect(name) as f32);
        list.iter().map(of).collect()
    };
    for name in ["loss", "grad_norm", "learning_rate", "tokens_per_second"] {
        assert_eq!(scalars(&format!("train/{name}")), wanted(&steps, name), "{name}");
    }
    let tuning: Vec<&Value> = events.iter().map(|event| &event["tuning"]).filter(|tuning| tuning.is_object()).collect();
    for name in ["loss", "token_accuracy"].into_iter().filter(|_| !tuning.is_empty()) {
        assert_eq!(scalars(&format!("tuning/{name}")), wanted(&tuning, name), "{name}");
    }
    let metric = |name: &str| cli.json(&["job", "show", id])["metrics"][name].as_f64().expect(name) as f32;
    assert_eq!(scalars("held_out/chrf"), [(6, metric("chrf"))]);
    assert_eq!(scalars("held_out_base/chrf_low"), [(6, metric("base_chrf_low"))]);
    assert_eq!(scalars("held_out_difference/chrf_difference"), [(6, metric("chrf_difference"))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_has_not_succeeded_shows_no_targets() {
    let up = Up::start().await;
    up.add_base_and_rows(Family::T5).await;
    let cli = up.cli();
    let job = train(&cli, "1000000", &["--detach"]);
    let id = job["id"].as_str().expect("id");
    up.addresses.wait_for_steps(id).await;
    cli.refused(&["job", "predictions", id]).says("FAILED_PRECONDITION", &[id, "once it has succeeded"]);
    let drawn = cli.json(&["job", "plot", id, "-o", &up.folder.join("running.svg").display().to_string()]);
    assert!(drawn["steps"].as_u64() > Some(0), "a running job is drawn as far as it is: {drawn}");
    let runs = up.folder.join("runs").display().to_string();
    assert!(cli.json(&["job", "tensorboard", id, &runs, "--no-follow"])["steps"].as_u64() > Some(0));
    cli.json(&["job", "cancel", id]);
    cli.refused(&["job", "predictions", id]).says("FAILED_PRECONDITION", &["CANCELLED"]);
}
