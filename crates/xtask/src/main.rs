//! `cargo xtask`: set-up, demo, tests, benchmarks, fixtures.
//!
//! Everything that a newcomer or the CI types beyond plain Cargo is a command of this table. Each says what it installs
//! or starts, keeps it in the cache outside the clone, and can be run again at any time.

mod bench;
mod checks;
mod faults;
mod fuzz;
mod libtorch;
mod lock;
mod package;
mod process;
mod programs;
mod tools;
mod workspace;

use std::env;
use std::process::ExitCode;

use anyhow::{Result, bail};

struct Task {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    /// What `cargo xtask help NAME` adds.
    details: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const TASKS: &[Task] = &[
    Task {
        name: "demo",
        arguments: "[ARGUMENTS OF tailor demo]",
        about: "the whole loop on the shipped data and base: set-up, build, train, serve",
        details: "Fetches libtorch if need be, builds `tailor`, and runs `tailor demo`. What it makes is under .tailor/;\n\
                  a second run continues from there. `cargo xtask demo --help` shows the demo's own flags.",
        run: programs::demo,
    },
    Task {
        name: "test",
        arguments: "[FILTER ...]",
        about: "format, lints, all tests, with the servers they need",
        details: "Without a filter: cargo fmt --check, clippy, every test, and the compose test (skipped, loudly,\n\
                  where no Docker engine runs). With a filter: only the tests whose names contain it.\n\
                  redis-server is taken from TAILOR_REDIS_SERVER or PATH, or installed by apt-get when you are root; the\n\
                  S3-compatible server and the gRPC client go into a virtualenv in the cache; cargo-nextest is built into\n\
                  the cache if you have none. NVRTC, which compiles the GPU's kernels and needs no GPU, goes into the cache too.",
        run: checks::test,
    },
    Task {
        name: "parity",
        arguments: "[--install | NAME ...]",
        about: "live comparisons with the Python tools (torch, transformers, peft, bitsandbytes, llama.cpp)",
        details: "Runs tests/parity/check_*.py, or those whose names contain NAME, as many at a time as there are cores, in a\n\
                  virtualenv of its own in the cache. The first run downloads some 3 GB (pip's torch comes with the CUDA\n\
                  libraries) and compiles llama.cpp, for which a C++ compiler must be there: some two minutes on two cores.\n\
                  --install         makes that virtualenv and compares nothing",
        run: checks::parity,
    },
    Task {
        name: "compose",
        arguments: "[ARGUMENTS OF tests/compose/run.py]",
        about: "docker-compose.yml with real containers, walked as the README says",
        details: "Without --bin-dir the programs are built in release mode first. `cargo xtask compose --help` shows the flags.",
        run: checks::compose,
    },
    Task {
        name: "bench",
        arguments: "NAME [ARGUMENTS]",
        about: "a benchmark; without a name, the list of them",
        details: "`cargo xtask bench gpu --package DIR` measures nothing: it makes a folder to be copied to a machine with an NVIDIA\n\
                  GPU and libtorch 2.11 with CUDA 13, and run there; see docs/gpu.md.",
        run: bench::bench,
    },
    Task {
        name: "soak",
        arguments: "[--minutes N | --overload]",
        about: "the whole system under load for 30 minutes, or at ten times what it can do",
        details: "Builds `tailor` in release mode, measures what it can do, and asks for 80 % of that. Prints memory and times each\n\
                  minute and fails where memory grew, an answer was lost or differs from what the prompt got alone, or anything\n\
                  is left behind. --overload: once and ten times the load in turn, with the times to the first token.",
        run: programs::soak,
    },
    Task {
        name: "faults",
        arguments: "",
        about: "adapters that go wrong under load, and docs/adapter-faults.md from what was seen",
        details: "Cut and damaged files, another base's adapters, numbers that are none, a store that dies, evictions and moves in\n\
                  the middle of streams, a thousand loads at once: every other stream must say what it says alone.",
        run: faults::faults,
    },
    Task {
        name: "fuzz",
        arguments: "[TARGET] [--seconds N]",
        about: "the parsers of foreign files against a fuzzer; without a target, each in turn",
        details: "Needs the nightly toolchain (rustup toolchain install nightly) and builds cargo-fuzz if you have none. N is 60\n\
                  if not said. What it found before is under the cache, what is kept is fuzz/corpus; see docs/fuzzing.md.",
        run: fuzz::fuzz,
    },
    Task {
        name: "setup",
        arguments: "",
        about: "libtorch for the CPU, into the cache; afterwards a plain `cargo build` works",
        details: "Takes what it needs (135 MB) out of the wheels on the package index that pip is configured for, checks every\n\
                  file, and links .libtorch to it. A download that broke off goes on where it stopped.\n\
                  TAILOR_CACHE      the cache, instead of ~/.cache/tailor\n\
                  TAILOR_LIBTORCH   a libtorch of your own: no download\n\
                  PIP_INDEX_URL     another package index\n\
                  HTTPS_PROXY       a proxy",
        run: |_| libtorch::setup().map(|folder| println!("libtorch: {}", folder.display())),
    },
    Task {
        name: "make-bases",
        arguments: "[ARGUMENTS OF tailor-bases]",
        about: "pretrains the two tiny bases under bases/ again",
        details: "Seeded: the same machine makes the same files.",
        run: programs::make_bases,
    },
    Task {
        name: "golden",
        arguments: "[NAME ...]",
        about: "makes the golden fixtures again, with the Python tools",
        details: "Runs tests/golden/make_*.py, or those whose names contain NAME, in the virtualenv of `parity`.",
        run: checks::golden,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let (name, rest) = match arguments.split_first() {
        None => ("help", arguments),
        Some((name, rest)) => (name.as_str(), rest),
    };
    if matches!(name, "help" | "--help" | "-h") {
        println!("{}", help(rest.first().map(String::as_str))?);
        return Ok(());
    }
    // `cargo xtask demo -- --flag` and `cargo xtask demo --flag` mean the same.
    let rest = rest.strip_prefix(&["--".to_owned()]).unwrap_or(rest);
    (find(name)?.run)(rest)
}

fn find(name: &str) -> Result<&'static Task> {
    match TASKS.iter().find(|task| task.name == name) {
        Some(task) => Ok(task),
        None => bail!("there is no `cargo xtask {name}`; `cargo xtask help` lists what there is"),
    }
}

fn help(about: Option<&str>) -> Result<String> {
    if let Some(name) = about {
        let task = find(name)?;
        return Ok(format!("cargo xtask {} {}\n\n{}\n\n{}", task.name, task.arguments, task.about, task.details));
    }
    let mut text = String::from("cargo xtask TASK\n\n");
    for task in TASKS {
        text += &format!("  {:11} {}\n", task.name, task.about);
    }
    text += "  help TASK   what a task does, installs and reads\n\n";
    text += "New here? `cargo xtask demo`. Everything installed goes to ~/.cache/tailor (TAILOR_CACHE moves it).";
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_task() {
        let text = help(None).unwrap();
        for task in TASKS {
            assert!(text.contains(&format!("  {} ", task.name)), "{} is missing", task.name);
            assert!(help(Some(task.name)).unwrap().contains(task.about));
        }
    }

    #[test]
    fn unknown_task_leads_to_the_list() {
        let message = dispatch(&["tset".to_owned()]).unwrap_err().to_string();
        assert!(message.contains("tset") && message.contains("cargo xtask help"), "{message}");
    }
}
