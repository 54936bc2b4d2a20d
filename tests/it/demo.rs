//! The main job as `tailor demo` does it: what the shipped bases learn from the shipped rows.

use serde_json::Value;
use tailor_testkit::TempDir;

use crate::support::cluster::ONE_THREAD;
use crate::support::{Cli, repository};

#[test]
fn the_demo_teaches_tiny_t5_what_it_did_not_know() {
    teaches("tiny-t5", "grammar");
}

#[test]
fn the_demo_teaches_tiny_llama_what_it_did_not_know() {
    let (folder, assets) = teaches("tiny-llama", "grammar-llama");
    // A second run, here a short one, goes on from what the first one kept.
    let second = demo(&folder, &["--assets", &assets, "--base", "tiny-llama", "--epochs", "0.1"]);
    let job = finished(&second);
    assert_eq!((&job["adapter"], &job["adapter_version"]), (&"grammar-llama".into(), &2.into()));
}

/// Runs the demo and holds its figures to what is promised.
fn teaches(base: &str, adapter: &str) -> (TempDir, String) {
    let folder = TempDir::new();
    let assets = repository().display().to_string();
    let lines = demo(&folder, &["--assets", &assets, "--base", base]);

    let job = finished(&lines);
    assert_eq!((&job["adapter"], &job["adapter_version"]), (&adapter.into(), &1.into()));
    let metric = |name: &str| job["metrics"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {}", job["metrics"]));
    assert!(metric("rows") >= 500.0, "enough held-out rows that a percent means something: {}", metric("rows"));
    assert!(metric("base_exact_match") <= 0.15, "the base alone: {}", job["metrics"]);
    assert!(metric("exact_match") >= 0.80, "the adapter: {}", job["metrics"]);
    assert!(metric("gleu") > metric("base_gleu"), "{}", job["metrics"]);

    let asked: Vec<_> = lines.iter().filter(|line| line["expected"].is_string()).collect();
    let right = asked.iter().filter(|line| line["adapter"] == line["expected"]).count();
    assert_eq!(asked.len(), 8, "unseen sentences");
    assert!(right >= 5, "{right} of {} unseen sentences: {asked:?}", asked.len());
    assert!(folder.path().join(".tailor/store").is_dir(), "what must last is under .tailor/");
    (folder, assets)
}

/// On one core: two of them would not be twice as fast, and another test has the other one.
fn demo(folder: &TempDir, arguments: &[&str]) -> Vec<Value> {
    let [(name, value)] = ONE_THREAD;
    Cli::new(folder.path()).env(name, value).lines(&[&["demo"], arguments].concat())
}

/// The job's document, among those of its events.
fn finished(lines: &[Value]) -> &Value {
    let job = lines.iter().rev().find(|line| line["adapter_version"].is_number());
    job.unwrap_or_else(|| panic!("no finished job in {lines:?}"))
}
