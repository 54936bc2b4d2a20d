//! `tailor` as a person or a script calls it.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::clients::Addresses;
use super::process::command;

/// The command line with its surroundings.
#[derive(Clone)]
pub struct Cli {
    folder: PathBuf,
    environment: Vec<(String, String)>,
}

/// How a call ended.
#[derive(Debug)]
pub struct Ended {
    pub status: i32,
    pub output: String,
    pub errors: String,
}

/// A call that was refused, as `--json` tells it.
#[derive(Debug)]
pub struct Refused {
    pub status: i32,
    pub code: String,
    pub message: String,
}

impl Cli {
    /// Runs in `folder`, with nothing set.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), environment: Vec::new() }
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    #[must_use]
    pub fn at(self, addresses: &Addresses) -> Self {
        self.env("TAILOR_DATASET_URL", &addresses.dataset)
            .env("TAILOR_TRAINER_URL", &addresses.trainer)
            .env("TAILOR_REGISTRY_URL", &addresses.registry)
            .env("TAILOR_GATEWAY_URL", &addresses.gateway)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command("tailor");
        command.args(arguments).current_dir(&self.folder).envs(self.environment.iter().cloned());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        let done = self.command(arguments).output().expect("run tailor");
        Ended {
            status: done.status.code().unwrap_or(-1),
            output: String::from_utf8_lossy(&done.stdout).into_owned(),
            errors: String::from_utf8_lossy(&done.stderr).into_owned(),
        }
    }

    /// A call that succeeds; what it printed.
    pub fn text(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.status, 0, "tailor {arguments:?} failed:\n{}\n{}", ended.output, ended.errors);
        ended.output
    }

    /// A call with `--json` that succeeds; every line it printed.
    pub fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.text(&[&["--json"], arguments].concat());
        let parsed = text.lines().map(|line| serde_json::from_str(line).map_err(|error| (line, error)));
        parsed.collect::<Result<_, _>>().unwrap_or_else(|wrong| panic!("tailor {arguments:?}: not JSON: {wrong:?}"))
    }

    /// A call with `--json` that succeeds; its one document, or the last of many.
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.lines(arguments).pop().unwrap_or_else(|| panic!("tailor {arguments:?} printed nothing"))
    }

    /// A call that fails with a message.
    pub fn refused(&self, arguments: &[&str]) -> Refused {
        let ended = self.run(&[&["--json"], arguments].concat());
        assert_ne!(ended.status, 0, "tailor {arguments:?} succeeded:\n{}", ended.output);
        let last = ended.errors.lines().last().unwrap_or_default();
        let error: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("no JSON error: {}", ended.errors));
        let field = |name: &str| error["error"][name].as_str().unwrap_or_default().to_owned();
        Refused { status: ended.status, code: field("code"), message: field("message") }
    }
}

impl Refused {
    /// The gRPC code and every part of the message that a reader needs.
    #[track_caller]
    pub fn says(&self, code: &str, parts: &[&str]) {
        assert_eq!(self.code, code, "{}", self.message);
        for part in parts {
            assert!(self.message.contains(part), "{part:?} is missing in: {}", self.message);
        }
    }
}
