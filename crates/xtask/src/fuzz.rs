//! `cargo xtask fuzz`: the parsers of foreign files under libFuzzer (docs/fuzzing.md).

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{process, workspace};

/// The names of `crates/hostile`.
const TARGETS: [&str; 7] =
    ["safetensors", "index", "quant_state", "adapter_config", "tokenizer_config", "chat_template", "sentencepiece"];
/// Of memory, as libFuzzer counts it; and of seconds for one input.
const LIMITS: [&str; 2] = ["-rss_limit_mb=2048", "-timeout=10"];
/// No trick needs more, and the fuzzer is faster on short inputs.
const MAX_INPUT: &str = "-max_len=8192";

/// `cargo xtask fuzz [TARGET] [--seconds N]`
pub fn fuzz(arguments: &[String]) -> Result<()> {
    let (targets, seconds) = parse(arguments)?;
    let nightly = process::succeeds(Command::new("cargo").args(["+nightly", "--version"]));
    ensure!(nightly, "the nightly toolchain is needed: rustup toolchain install nightly");
    let build = workspace::cache()?.join("fuzz-target");
    if !process::succeeds(Command::new("cargo").args(["fuzz", "--version"])) {
        process::heading("building cargo-fuzz (a minute or two, once)");
        process::run(
            Command::new("cargo").args(["install", "--locked", "cargo-fuzz"]).env("CARGO_TARGET_DIR", &build),
        )?;
    }
    for target in targets {
        // New inputs go to the first folder; what is committed is only read.
        let found = workspace::cache()?.join("fuzz-corpus").join(target);
        fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        let kept = workspace::root().join("fuzz/corpus").join(target);
        process::heading(&format!("{target}: {seconds} seconds"));
        let mut command = Command::new("cargo");
        command
            .args(["+nightly", "fuzz", "run", "--fuzz-dir", "fuzz", target])
            .args([&found, &kept])
            .arg("--")
            .args(LIMITS)
            .args([MAX_INPUT, "-print_final_stats=1", &format!("-max_total_time={seconds}")])
            .env("CARGO_TARGET_DIR", &build)
            .current_dir(workspace::root());
        process::run(&mut command)?;
    }
    Ok(())
}

fn parse(arguments: &[String]) -> Result<(Vec<&'static str>, u64)> {
    let (mut targets, mut seconds) = (Vec::new(), 60);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let number = arguments.next().context("--seconds needs a number")?;
            seconds = number.parse().with_context(|| format!("--seconds {number:?} is no number"))?;
        } else if let Some(target) = TARGETS.iter().find(|target| *target == argument) {
            targets.push(*target);
        } else {
            bail!("there is no fuzz target {argument:?}; there are {}", TARGETS.join(", "));
        }
    }
    Ok((if targets.is_empty() { TARGETS.to_vec() } else { targets }, seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn targets_and_seconds_are_read_in_any_order() {
        assert_eq!(parse(&[]).unwrap(), (TARGETS.to_vec(), 60));
        assert_eq!(parse(&words("--seconds 600 index")).unwrap(), (vec!["index"], 600));
        assert!(parse(&words("indx")).unwrap_err().to_string().contains("quant_state"));
        assert!(parse(&words("--seconds many")).unwrap_err().to_string().contains("many"));
    }

    #[test]
    fn every_target_has_its_file_and_its_corpus() {
        for target in TARGETS {
            let folder = workspace::root().join("fuzz");
            assert!(folder.join("fuzz_targets").join(format!("{target}.rs")).is_file(), "{target}");
            assert!(folder.join("corpus").join(target).is_dir(), "{target}");
        }
    }
}
