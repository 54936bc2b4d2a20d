//! `tailor up` with a shipped base and some adapters, in a folder that goes with it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tailor_testkit::TempDir;

use crate::Outcome;

pub const BASE: &str = "tiny-llama";
pub const ADAPTERS: [&str; 4] = ["one", "two", "three", "four"];
/// Sequences in a step; the gateway's default.
pub const MAX_BATCH: usize = 32;
const STARTUP: Duration = Duration::from_secs(60);

pub struct System {
    up: Child,
    pub gateway: String,
    folder: TempDir,
}

impl System {
    /// Started, with a base, and adapters of several ranks after two steps of training.
    pub fn start(settings: &[(&str, &str)]) -> Outcome<Self> {
        let folder = TempDir::new();
        let (log, printed) = (folder.join("up.log"), folder.join("up.out"));
        let mut up = tailor(folder.path());
        up.args(["up", "--port", "0", "--json"]).envs(settings.iter().copied());
        let up = up.stdin(Stdio::null()).stdout(File::create(&printed)?).stderr(File::create(&log)?).spawn()?;
        let mut system = Self { up, gateway: String::new(), folder };
        let give_up_at = Instant::now() + STARTUP;
        system.gateway = loop {
            let text = std::fs::read_to_string(&printed)?;
            let line = text.lines().next().filter(|_| text.contains('\n')).unwrap_or_default();
            let addresses: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            if let Some(gateway) = addresses["gateway"].as_str() {
                break gateway.to_owned();
            }
            if system.up.try_wait()?.is_some() || Instant::now() > give_up_at {
                return Err(format!("`tailor up` did not start:\n{}", std::fs::read_to_string(&log)?).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        system.fill()?;
        Ok(system)
    }

    fn fill(&self) -> Outcome<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("tests/ is in the repository")?;
        let (base, rows) = (root.join("bases").join(BASE), root.join("data/grammar.csv"));
        self.cli(&["base", "add", &base.display().to_string(), "--name", BASE])?;
        let columns = ["--input", "text", "--target", "expected text", "--template", "Correct: {input}"];
        let push = ["dataset", "push", &rows.display().to_string(), "--name", "grammar"];
        self.cli(&[&push[..], &columns].concat())?;
        for (adapter, rank) in ADAPTERS.into_iter().zip(["4", "8", "16", "32"]) {
            let train = ["train", "--base", BASE, "--dataset", "grammar", "--adapter", adapter, "--rank", rank];
            self.cli(
                &[&train[..], &["--max-steps", "2", "--max-validation-rows", "2", "--max-new-tokens", "2"]].concat(),
            )?;
        }
        Ok(())
    }

    fn cli(&self, arguments: &[&str]) -> Outcome<()> {
        let done = tailor(self.folder.path()).args(arguments).output()?;
        if done.status.success() {
            return Ok(());
        }
        Err(format!("tailor {arguments:?} failed: {}", String::from_utf8_lossy(&done.stderr)).into())
    }

    /// What `tailor up` has in memory now.
    pub fn memory_bytes(&self) -> Outcome<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.up.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("it has ended")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

/// `tailor` with nothing set but where its state is.
fn tailor(folder: &Path) -> Command {
    let program = std::env::var_os("TAILOR_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap_or_default();
        own.ancestors().nth(2).map(Path::to_owned).unwrap_or_default()
    });
    let mut command = Command::new(program.join("tailor"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("TAILOR_") {
            command.env_remove(variable);
        }
    }
    command.env("TAILOR_STATE", folder.join("state")).env("TAILOR__TRAINER__CALIBRATE", "false").current_dir(folder);
    command
}
