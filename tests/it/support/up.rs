//! `tailor up`: the four services in one process.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tailor_testkit::TempDir;

use super::clients::Addresses;
use super::cluster::ONE_THREAD;
use super::{Cli, Family, Process, eventually};

pub struct Up {
    pub process: Process,
    pub addresses: Addresses,
    pub state: PathBuf,
    pub folder: TempDir,
}

impl Up {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With settings from the environment, e.g. `("TAILOR__AUTH__TOKEN", "secret")`.
    pub async fn with(environment: &[(&str, &str)]) -> Self {
        Self::on(TempDir::new(), None, environment).await
    }

    /// On a state folder of one's own instead of `folder`/state.
    pub async fn on(folder: TempDir, state: Option<PathBuf>, environment: &[(&str, &str)]) -> Self {
        let state = state.unwrap_or_else(|| folder.join("state"));
        let (process, addresses) = launch(&folder, &state, environment).await;
        Self { process, addresses, state, folder }
    }

    /// Ends it as given by `end` and starts it again on the same folder.
    pub async fn again(&mut self, end: impl FnOnce(&mut Process)) {
        end(&mut self.process);
        (self.process, self.addresses) = launch(&self.folder, &self.state, &[]).await;
    }

    /// SIGTERM, and the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.process.terminate();
        self.process.wait(Duration::from_secs(30)).code()
    }

    /// The command line as another shell in the same folder has it: it finds the addresses by itself.
    pub fn cli(&self) -> Cli {
        Cli::new(self.folder.path()).env("TAILOR_STATE", self.state.display().to_string())
    }

    /// Registers a random base and uploads rows under the name `rows`.
    pub async fn add_base_and_rows(&self, family: Family) {
        let folder = family.write(self.folder.path());
        self.cli().text(&["base", "add", &folder.display().to_string(), "--name", family.base(), "--dtype", "f32"]);
        self.addresses.upload("rows", super::rows::csv(60).as_bytes()).await.expect("rows uploaded");
    }
}

async fn launch(folder: &TempDir, state: &std::path::Path, environment: &[(&str, &str)]) -> (Process, Addresses) {
    let mut cli = Cli::new(folder.path()).env("TAILOR_STATE", state.display().to_string());
    for (name, value) in ONE_THREAD.iter().chain(environment) {
        cli = cli.env(name, *value);
    }
    let _ = std::fs::remove_file(folder.join("up.out"));
    let command = cli.command(&["--log", "info", "up", "--port", "0", "--json"]);
    let mut process = Process::spawn("up", command, folder.path());
    let addresses = eventually("`tailor up` prints its addresses", async || {
        let ended = process.has_ended();
        assert!(ended.is_none(), "`tailor up` ended with {ended:?}:\n{}", process.log());
        let output = process.output();
        let (line, _) = output.split_once('\n')?;
        let printed: Value = serde_json::from_str(line).expect("addresses as JSON");
        let url = |name: &str| printed[name].as_str().expect("an address").to_owned();
        Some(Addresses {
            dataset: url("dataset"),
            trainer: url("trainer"),
            registry: url("registry"),
            gateway: url("gateway"),
        })
    })
    .await;
    (process, addresses)
}
