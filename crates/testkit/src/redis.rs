//! A real redis-server in a temporary folder.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::process::{Server, find_executable, skipped};
use crate::{TempDir, free_port};

/// A redis-server of one test. Killed when dropped.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    folder: TempDir,
    durable: bool,
    server: Option<Server>,
}

impl RedisServer {
    /// Starts a server that keeps everything in memory. `None`, and a loud line, where redis-server is not installed:
    /// `TAILOR_TEST_REDIS` names the executable, else it is looked for on the `PATH`.
    ///
    /// # Panics
    /// The server does not start.
    pub fn spawn() -> Option<Self> {
        Self::start(false)
    }

    /// As [`RedisServer::spawn`], with every write on disk before it is answered: survives [`RedisServer::kill`].
    ///
    /// # Panics
    /// As [`RedisServer::spawn`].
    pub fn spawn_durable() -> Option<Self> {
        Self::start(true)
    }

    fn start(durable: bool) -> Option<Self> {
        if find_executable("TAILOR_TEST_REDIS", "redis-server").is_none() {
            skipped("redis-server is not installed; install it or name it in TAILOR_TEST_REDIS");
            return None;
        }
        let mut server = Self { port: free_port(), folder: TempDir::new(), durable, server: None };
        server.restart();
        Some(server)
    }

    /// SIGKILL, without a chance to flush.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts it again on the same port and folder; kills it first if it runs.
    ///
    /// # Panics
    /// The server does not start.
    pub fn restart(&mut self) {
        self.kill();
        let executable = find_executable("TAILOR_TEST_REDIS", "redis-server").expect("redis-server was here before");
        let mut command = Command::new(executable);
        let port = self.port.to_string();
        command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--daemonize", "no", "--dir"]);
        command.arg(self.folder.path());
        command.args(["--appendonly", if self.durable { "yes" } else { "no" }, "--appendfsync", "always"]);
        let port = self.port;
        self.server = Some(Server::start(command, &self.folder.join("redis.log"), || pongs(port)));
    }

    /// `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends one inline command, e.g. `FLUSHALL`, and gives back the first piece of the answer.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn command(&self, line: &str) -> String {
        send(self.port, line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }
}

fn pongs(port: u16) -> bool {
    // While it loads its file a server answers, but not with PONG.
    send(port, "PING").is_ok_and(|answer| answer.starts_with("+PONG"))
}

fn send(port: u16, line: &str) -> std::io::Result<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{line}\r\n").as_bytes())?;
    let mut answer = vec![0; 64 * 1024];
    let length = stream.read(&mut answer)?;
    answer.truncate(length);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
