//! The program that measures on a GPU, as far as it goes without one: its refusal, and its smallest shape on the host.

use std::path::PathBuf;
use std::process::{Command, Output};

use tailor_testkit::{TempDir, skipped};

/// The example as Cargo built it: in `TAILOR_BIN_DIR`, else beside this test.
fn program() -> Option<PathBuf> {
    let beside = std::env::current_exe().expect("a path").ancestors().nth(2).expect("a target folder").to_owned();
    let folder = std::env::var_os("TAILOR_BIN_DIR").map_or(beside, PathBuf::from);
    let program = folder.join("examples/bench_gpu");
    if !program.exists() {
        skipped(&format!("{} is not built (cargo build --workspace --all-targets)", program.display()));
        return None;
    }
    Some(program)
}

fn run(words: &[&str]) -> Option<Output> {
    let mut command = Command::new(program()?);
    command.args(words).env_remove("LD_LIBRARY_PATH").env("OMP_NUM_THREADS", "1");
    Some(command.output().expect("starts"))
}

#[test]
fn a_machine_without_a_gpu_is_told_what_is_missing_with_status_3() {
    if tailor_torch::gpu::open().is_ok() {
        return; // there is one
    }
    let Some(output) = run(&["--shape", "tiny"]) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.starts_with("not run: no GPU can be used: "), "{said}");
    assert!(output.stdout.is_empty(), "no figure is printed");
}

#[test]
fn a_setting_that_is_none_is_refused_with_those_there_are() {
    let Some(output) = run(&["--shape", "gpt5"]) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("llama3-8b, llama2-7b, t5-11b, llama2-70b"), "{said}");
}

/// Losses of each case of the smallest shape.
fn losses(device: &str) -> Option<Vec<(f64, f64)>> {
    let folder = TempDir::new();
    let report = folder.join("figures.json");
    let path = report.to_str().expect("UTF-8");
    let output = run(&["--device", device, "--shape", "tiny", "--steps", "4", "--json", path])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).expect("written")).expect("JSON");
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 3, "{report:#}");
    let figures = rows.iter().map(|row| {
        let figure = |name: &str| row["figures"][name].as_f64().unwrap_or_else(|| panic!("{name} in {row:#}"));
        assert!(figure("tokens_per_second") > 0.0 && figure("peak") > figure("weights"), "{row:#}");
        (figure("first_loss"), figure("grad_norm"))
    });
    Some(figures.collect())
}

#[test]
fn the_smallest_shape_is_measured_on_the_host_and_goes_the_same_way_by_the_kernels() {
    let Some(plain) = losses("cpu") else { return };
    let Some(kernels) = losses("emulated") else { return };
    for ((loss, norm), (expected_loss, expected_norm)) in kernels.iter().zip(&plain) {
        // A random model knows nothing of 300 tokens.
        assert!((expected_loss - 300f64.ln()).abs() < 1.0, "{expected_loss}");
        assert!((loss - expected_loss).abs() < 0.02 * expected_loss, "{loss} for {expected_loss}");
        assert!((norm - expected_norm).abs() < 0.1 * expected_norm, "{norm} for {expected_norm}");
    }
}
