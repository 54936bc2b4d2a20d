//! `cargo xtask test|parity|golden|compose`.

use std::fs;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::tools::python::{LlamaCpp, Venv};
use crate::tools::{nextest, redis};
use crate::{libtorch, process, workspace};

const COMPOSE: &str = "tests/compose/run.py";
/// The compose test's exit status where it cannot run.
const SKIPPED: i32 = 77;

/// Builds the programs as the tests build them. With `--bins` alone Cargo would unify the features of fewer crates and
/// compile half of the dependencies a second time.
const BUILD_ALL: [&str; 3] = ["build", "--workspace", "--all-targets"];

/// What a program or test is told about the peers it may use.
struct Peers {
    variables: Vec<(&'static str, PathBuf)>,
}

impl Peers {
    /// Finds or installs them, what takes long beside `build`.
    fn of_tests(build: impl FnOnce() -> Result<()>) -> Result<Self> {
        let (redis, nvrtc) = (redis::server()?, libtorch::nvrtc::library()?);
        let venv =
            || Venv::ensure("venv-test", "tests/python/requirements.txt", "an S3-compatible server and a gRPC client");
        let venv = installed_while(venv, build)?;
        let variables = vec![
            ("TAILOR_TEST_REDIS", redis),
            ("TAILOR_TEST_PYTHON", venv.python()),
            ("TAILOR_TEST_MOTO", venv.script("moto_server")),
            ("TAILOR_BIN_DIR", workspace::programs()?),
            ("TAILOR_TEST_NVRTC", nvrtc),
        ];
        for (name, path) in &variables {
            println!("{name}={}", path.display());
        }
        Ok(Self { variables })
    }

    fn give_to(&self, mut command: Command) -> Command {
        command.envs(self.variables.iter().map(|(name, path)| (name, path)));
        // With its peers at hand no test may skip itself.
        command.env("TAILOR_TEST_REQUIRE", "1");
        command
    }
}

/// `cargo xtask test [FILTER ...]`
pub fn test(filters: &[String]) -> Result<()> {
    test_with(filters, &[])
}

/// As [`test`], the tests being told more.
pub fn test_with(filters: &[String], told: &[(&str, &Path)]) -> Result<()> {
    libtorch::setup()?;
    let runner = nextest::runner()?;
    let peers = Peers::of_tests(|| {
        if filters.is_empty() {
            process::heading("format");
            process::run(workspace::cargo().args(["fmt", "--all", "--check"])).context("`cargo fmt` mends that")?;
            process::heading("lints");
            process::run(workspace::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
        }
        build_all()
    })?;
    process::heading("tests");
    process::run(peers.give_to(runner.command(filters)).envs(told.iter().copied()))?;
    if !filters.is_empty() {
        return Ok(());
    }
    process::heading("docker compose");
    compose(&["--bin-dir".to_owned(), workspace::programs()?.to_string_lossy().into_owned()])?;
    println!("\nall tests passed");
    Ok(())
}

/// `cargo xtask parity [--install | NAME ...]`
pub fn parity(names: &[String]) -> Result<()> {
    if let [flag] = names
        && flag == "--install"
    {
        return parity_venv().map(drop);
    }
    // Before gigabytes are installed for scripts that are not there.
    let chosen = Scripts::named("tests/parity", "check_", names)?;
    libtorch::setup()?;
    let venv = installed_while(parity_venv, build_all)?;
    // The models are so small that a script computes on one core.
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    chosen.run(&venv, cores)
}

/// `cargo xtask golden [NAME ...]`
pub fn golden(names: &[String]) -> Result<()> {
    let chosen = Scripts::named("tests/golden", "make_", names)?;
    chosen.run(&parity_venv()?, 1)
}

/// `cargo xtask compose [ARGUMENTS]`
pub fn compose(arguments: &[String]) -> Result<()> {
    libtorch::setup()?;
    let mut command = Command::new("python3");
    command.arg(COMPOSE).args(arguments).current_dir(workspace::root());
    let status = process::status(&mut command)?;
    // A skip has said so itself, in its own frame.
    ensure!(status.success() || status.code() == Some(SKIPPED), "{COMPOSE} failed ({status})");
    Ok(())
}

fn build_all() -> Result<()> {
    process::heading("programs");
    process::run(workspace::cargo().args(BUILD_ALL))
}

/// Installs a virtualenv beside a build: pip waits for the network most of the time, and the compiler for the processor.
fn installed_while(install: impl FnOnce() -> Result<Venv> + Send, build: impl FnOnce() -> Result<()>) -> Result<Venv> {
    thread::scope(|scope| {
        let installing = scope.spawn(install);
        let built = build();
        let installed = installing.join().unwrap_or_else(|panic| resume_unwind(panic));
        built?;
        installed
    })
}

/// The virtualenv with the peers that we compare with.
pub fn parity_venv() -> Result<Venv> {
    let note = "torch, transformers, peft, bitsandbytes (some 3 GB to download) and llama.cpp (to compile), once";
    Venv::ensure("venv-parity", "tests/parity/requirements.txt", note)
}

/// The virtualenv with llama.cpp alone, made for this processor: the peer whose speed ours is compared with.
pub fn llama_venv() -> Result<Venv> {
    let note = "llama.cpp (to compile with all optimisations for this processor, some ten minutes of one core), once";
    Venv::ensure_with("venv-llama", "tests/bench/requirements.txt", note, &LlamaCpp::Here)
}

/// Some of a folder's scripts.
#[derive(Debug)]
struct Scripts {
    /// Under the root.
    folder: &'static str,
    files: Vec<String>,
}

impl Scripts {
    /// Those whose names contain one of `names`; all without names.
    ///
    /// # Errors
    /// A name that no script has.
    fn named(folder: &'static str, prefix: &str, names: &[String]) -> Result<Self> {
        let files = scripts(&workspace::root().join(folder), prefix, names)?;
        Ok(Self { folder, files })
    }

    /// Runs them to the end, all of them, and names those that failed. Where several run at a time, each is shown when it has
    /// ended, else while it runs.
    fn run(&self, venv: &Venv, at_once: usize) -> Result<()> {
        let Self { folder, files } = self;
        let programs = workspace::programs()?;
        let at_once = at_once.min(files.len());
        if at_once > 1 {
            println!("{} scripts, {at_once} at a time: {}", files.len(), files.join(", "));
        }
        let succeeds = |script: &str| -> Result<bool> {
            let mut command = Command::new(venv.python());
            command.arg(Path::new(folder).join(script)).current_dir(workspace::root());
            command.env("TAILOR_BIN_DIR", &programs).env("TAILOR_TEST_PYTHON", venv.python());
            if at_once == 1 {
                process::heading(script);
                return Ok(process::status(&mut command)?.success());
            }
            // What a script starts has as many cores as the script.
            command.env("OMP_NUM_THREADS", "1");
            let began = Instant::now();
            let (said, status) = process::heard(&mut command)?;
            println!("\n==> {script}, {:.0} s\n{said}", began.elapsed().as_secs_f64());
            Ok(status.success())
        };
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<String>> {
            let mut failed = Vec::new();
            while let Some(script) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                if !succeeds(script)? {
                    failed.push(script.clone());
                }
            }
            Ok(failed)
        };
        let failed: Vec<Vec<String>> = thread::scope(|scope| {
            let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect::<Result<_>>()
        })?;
        let failed = failed.concat();
        ensure!(failed.is_empty(), "{} of {} scripts failed: {}", failed.len(), files.len(), failed.join(", "));
        println!("\nall {} scripts of {folder} succeeded", files.len());
        Ok(())
    }
}

/// The files of a folder's scripts whose names contain one of `names`, or of all.
fn scripts(folder: &Path, prefix: &str, names: &[String]) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let files = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut all: Vec<String> = files.filter(|file| file.starts_with(prefix) && file.ends_with(".py")).collect();
    all.sort();
    ensure!(!all.is_empty(), "there is no {prefix}*.py in {}", folder.display());
    // A name beside others that are known would be left out without a word.
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|file| file.contains(name.as_str()))) {
        let known = all.iter().filter_map(|file| file.strip_prefix(prefix)?.strip_suffix(".py"));
        let known: Vec<&str> = known.collect();
        bail!("no script of {} has {unknown:?} in its name; there are {}", folder.display(), known.join(", "));
    }
    all.retain(|file| names.is_empty() || names.iter().any(|name| file.contains(name.as_str())));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_chosen_by_prefix_and_name() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["check_quant.py", "check_adapters.py", "common.py", "check_notes.txt"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        assert_eq!(scripts(folder.path(), "check_", &[]).unwrap(), ["check_adapters.py", "check_quant.py"]);
        assert_eq!(scripts(folder.path(), "check_", &["quant".to_owned()]).unwrap(), ["check_quant.py"]);
    }

    #[test]
    fn a_name_that_no_script_has_is_refused_with_those_that_are_known() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["check_quant.py", "check_adapters.py"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        for names in [&["speed"][..], &["quant", "speed"]] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let message = scripts(folder.path(), "check_", &names).unwrap_err().to_string();
            assert!(message.contains("\"speed\"") && message.ends_with("there are adapters, quant"), "{message}");
        }
        let message = scripts(folder.path(), "make_", &[]).unwrap_err().to_string();
        assert!(message.contains("no make_*.py"), "{message}");
    }

    /// Where it were not refused first, this test would install and build for minutes.
    #[test]
    fn parity_and_golden_install_nothing_for_a_name_that_no_script_has() {
        for task in [parity, golden] {
            let message = task(&["no such script".to_owned()]).unwrap_err().to_string();
            assert!(message.contains("\"no such script\""), "{message}");
        }
    }
}
