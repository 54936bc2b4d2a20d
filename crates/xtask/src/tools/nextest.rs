//! The test runner. Each test is a process of its own under cargo-nextest, so tests with global state (a telemetry
//! pipeline, environment variables) cannot disturb one another; `cargo test` is the fallback.

use std::process::Command;

use anyhow::Result;

use crate::{process, workspace};

pub enum Runner {
    Nextest(Command),
    CargoTest(Command),
}

/// cargo-nextest as installed, or built into the cache; `cargo test` where that fails.
pub fn runner() -> Result<Runner> {
    let mut installed = workspace::cargo();
    if process::succeeds(installed.args(["nextest", "--version"])) {
        let mut command = workspace::cargo();
        command.arg("nextest");
        return Ok(Runner::Nextest(command));
    }
    let tools = workspace::cache()?.join("tools");
    let program = tools.join("bin/cargo-nextest");
    if !program.is_file() {
        process::heading(&format!("building cargo-nextest into {} (some minutes, once)", tools.display()));
        let mut install = workspace::cargo();
        // Its own target folder goes when it is done; the clone's is not touched.
        install
            .args(["install", "--locked", "--quiet", "cargo-nextest", "--root"])
            .arg(&tools)
            .env_remove("CARGO_TARGET_DIR");
        if !process::status(&mut install)?.success() {
            println!("cargo-nextest could not be built: `cargo test` is used instead");
            let mut command = workspace::cargo();
            command.arg("test");
            return Ok(Runner::CargoTest(command));
        }
    }
    let mut command = workspace::building(Command::new(program));
    command.arg("nextest");
    Ok(Runner::Nextest(command))
}

impl Runner {
    /// The command that runs the workspace's tests, those whose names contain a filter if there are any.
    pub fn command(self, filters: &[String]) -> Command {
        match self {
            Self::Nextest(mut command) => {
                command.args(["run", "--workspace", "--no-fail-fast"]).args(filters);
                command
            }
            Self::CargoTest(mut command) => {
                command.args(["test", "--workspace", "--all-targets", "--no-fail-fast", "--"]).args(filters);
                command
            }
        }
    }
}
