//! `cargo xtask faults`: the tests in which adapters go wrong under load, and their report.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{checks, workspace};

const REPORT: &str = "docs/adapter-faults.md";

/// `cargo xtask faults`
pub fn faults(_: &[String]) -> Result<()> {
    let rows = workspace::cache()?.join("fault-rows");
    let _ = fs::remove_file(&rows);
    checks::test_with(&["adapter_faults::".to_owned()], &[("TAILOR_FAULT_ROWS", rows.as_path())])?;
    let text = fs::read_to_string(&rows).with_context(|| format!("the tests wrote no {}", rows.display()))?;
    let mut rows: Vec<&str> = text.lines().collect();
    rows.sort_unstable();
    ensure!(!rows.is_empty(), "no fault was tried");
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(workspace::root()).output();
    let commit = commit.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let report = format!(
        "# Faults of adapters under load\n\n\
         Written by `cargo xtask faults` at commit {}. Each fault happens to one adapter (or to the store) while four callers ask\n\
         the same gateway (or the edge before the same two engines) without a pause, two of them the base and two another adapter;\n\
         every answer of theirs is held, byte for byte, to what the same prompt got before anything happened. The tests are in\n\
         `tests/it/adapter_faults.rs`.\n\n\
         | fault | what its callers saw | neighbours' answers, all as if alone |\n| --- | --- | --- |\n{}\n",
        commit.trim(),
        rows.join("\n")
    );
    fs::write(workspace::root().join(REPORT), report).with_context(|| format!("cannot write {REPORT}"))?;
    println!("{REPORT} is written");
    Ok(())
}
