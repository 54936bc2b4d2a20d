//! What the benchmarks share: arms in processes of their own, and the line that says what they ran on.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::Command;

use anyhow::{Result, ensure};

pub const MIB: f64 = (1 << 20) as f64;

/// Runs this program again, so that one arm's peak of memory is not another's; gives its `name value` lines.
pub fn figures_of_child(arguments: impl IntoIterator<Item = OsString>) -> Result<BTreeMap<String, f64>> {
    let output = Command::new(std::env::current_exe()?).args(arguments).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(figures(&String::from_utf8(output.stdout)?))
}

/// `name value` lines.
pub fn figures(text: &str) -> BTreeMap<String, f64> {
    let figure = |line: &str| -> Option<(String, f64)> {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(figure).collect()
}

/// Processor, threads and commit.
pub fn hardware() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, value)| value).to_owned()
    };
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = commit.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let bf16 = if cpuinfo.contains("avx512_bf16") { ", AVX512-BF16" } else { "" };
    format!("{}{bf16}, {} threads, commit {}", field("model name"), tch::get_num_threads(), commit.trim())
}
