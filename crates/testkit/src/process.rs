//! Server processes: found, started on a free port, waited for, killed.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a server may take to answer; moto imports much of Python first, on a busy machine slowly.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Below what the kernel hands out for port 0 and for outgoing connections (Linux: from 32768), so that neither takes a
/// port between its choice here and the start of the server that it is for.
const PORTS: Range<u16> = 20_000..32_000;

/// The locks of the ports that this process has; they end with it.
static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A loopback port that nobody listens on and that no other test is given while this process lives.
///
/// # Panics
/// The temporary folder cannot be written to, or no port is left.
pub fn free_port() -> u16 {
    let folder = std::env::temp_dir().join("tailor-test-ports");
    std::fs::create_dir_all(&folder).expect("create the folder of the ports' locks");
    // Tests that start together would otherwise all try the same ports first.
    let first = (std::process::id() % u32::from(PORTS.end - PORTS.start)) as usize;
    for port in PORTS.skip(first).chain(PORTS.take(first)) {
        let path = folder.join(port.to_string());
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.unwrap_or_else(|error| panic!("{} cannot be opened: {error}", path.display()));
        if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
            return port;
        }
    }
    panic!("no loopback port of {PORTS:?} is free");
}

/// Says loudly that a test did not run.
///
/// # Panics
/// `TAILOR_TEST_REQUIRE` is `1`.
pub fn skipped(what: &str) {
    let line = format!("SKIPPED: {what}");
    assert!(std::env::var("TAILOR_TEST_REQUIRE").as_deref() != Ok("1"), "{line}; TAILOR_TEST_REQUIRE=1 forbids that");
    eprintln!("{line}");
}

/// As [`skipped`] for want of a GPU, which no run can fetch: as loud, but `TAILOR_TEST_REQUIRE` does not forbid it.
pub fn skipped_without_gpu() {
    eprintln!("SKIPPED: no GPU; TAILOR_TEST_DEVICE=cuda names one");
}

/// Waits until something accepts connections on a loopback port; says whether it did.
pub fn wait_for_port(port: u16, timeout: Duration) -> bool {
    wait_until(timeout, || connects(port))
}

pub(crate) fn connects(port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_millis(200)).is_ok()
}

pub(crate) fn wait_until(timeout: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let give_up_at = Instant::now() + timeout;
    loop {
        if ready() {
            return true;
        }
        if Instant::now() >= give_up_at {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The executable that the environment variable names, else the one of that name on the `PATH`.
pub(crate) fn find_executable(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "{variable} names {}, which is no file", named.display());
        return Some(named);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

/// A child process that dies with its owner.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts a server with its output in `log` and waits until `ready`. On failure the log is in the panic message.
    pub(crate) fn start(mut command: Command, log: &Path, mut ready: impl FnMut() -> bool) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = File::options().create(true).append(true).open(log).expect("open the server's log");
        let errors = output.try_clone().expect("share the server's log");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        let mut server = Self { child: child.unwrap_or_else(|error| panic!("start {name}: {error}")) };
        let mut exited = None;
        let answered = wait_until(START_TIMEOUT, || {
            exited = server.child.try_wait().expect("state of the server");
            exited.is_some() || ready()
        });
        let log = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(exited.is_none(), "{name} ended with {exited:?}; it wrote:\n{}", log());
        assert!(answered, "{name} did not answer within {START_TIMEOUT:?}; it wrote:\n{}", log());
        server
    }

    /// SIGKILL: no chance to flush anything.
    pub(crate) fn kill(&mut self) {
        // Fails only when it is dead already, which is what was wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
