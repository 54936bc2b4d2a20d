//! Programs of the workspace as processes that die with their test, and show their log when it fails.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Lines of a log that a failing test shows.
const SHOWN: usize = 60;

/// The clone's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

/// A program of the workspace: in `TAILOR_BIN_DIR`, else where Cargo put it beside this test.
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("TAILOR_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("path of this test");
        test.ancestors().nth(2).expect("target folder").to_owned()
    });
    let program = folder.join(name);
    assert!(program.is_file(), "{} is not built; run `cargo build --workspace --bins`", program.display());
    program
}

/// The command of a program with no setting of this process' environment in it.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("TAILOR_") {
            command.env_remove(variable);
        }
    }
    // Measuring the machine at every start would only make the tests slower; those about it switch it on.
    command.env("TAILOR__TRAINER__CALIBRATE", "false");
    command
}

pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    output: PathBuf,
}

impl Process {
    /// Starts it with stderr (and stdout apart from it) in files of `folder`; a second one of a name appends.
    pub fn spawn(name: &str, mut command: Command, folder: &Path) -> Self {
        let (log, output) = (folder.join(format!("{name}.log")), folder.join(format!("{name}.out")));
        let errors = File::options().create(true).append(true).open(&log).expect("open a log");
        let out = File::options().create(true).append(true).open(&output).expect("open an output file");
        let child = command.stdin(Stdio::null()).stdout(out).stderr(errors).spawn();
        let child = child.unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self { name: name.to_owned(), child, log, output }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("state of a child")
    }

    /// What it has in memory now.
    pub fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident pages");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
        kilobytes * 1024
    }

    /// SIGKILL: no last word.
    pub fn kill(&mut self) {
        // Fails only when it is dead already, which is what was wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// `name` without its SIG.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIG{name} to {}", self.name);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It goes on for longer than `patience`.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let give_up_at = Instant::now() + patience;
        loop {
            if let Some(status) = self.has_ended() {
                return status;
            }
            assert!(Instant::now() < give_up_at, "{} did not end within {patience:?}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("---- {} wrote:\n{}", self.name, lines[lines.len().saturating_sub(SHOWN)..].join("\n"));
        }
    }
}
