//! A real S3-compatible server over HTTP: moto (the PyPI package `moto[server]`), behind a lock that makes its conditional puts
//! hold between threads too.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::process::{Server, connects, find_executable, skipped};
use crate::{TempDir, free_port};

const BUCKET: &str = "tailor-test";

/// An S3 server of one test, with one bucket. It forgets everything when killed.
#[derive(Debug)]
pub struct S3Server {
    port: u16,
    folder: TempDir,
    server: Option<Server>,
}

impl S3Server {
    /// Starts a server and makes its bucket. `None`, and a loud line, where moto is not installed: `TAILOR_TEST_MOTO`
    /// names the executable, else it is looked for on the `PATH`.
    ///
    /// # Panics
    /// The server does not start.
    pub fn spawn() -> Option<Self> {
        if find_executable("TAILOR_TEST_MOTO", "moto_server").is_none() {
            skipped("moto_server is not installed; pip install 'moto[server]' or name it in TAILOR_TEST_MOTO");
            return None;
        }
        let mut server = Self { port: free_port(), folder: TempDir::new(), server: None };
        server.restart();
        Some(server)
    }

    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts it again on the same port: empty, with its bucket.
    ///
    /// # Panics
    /// The server does not start or does not make the bucket.
    pub fn restart(&mut self) {
        self.kill();
        let executable = find_executable("TAILOR_TEST_MOTO", "moto_server").expect("moto_server was here before");
        // The Python that moto is installed in.
        let beside = executable.with_file_name("python");
        let python = if beside.is_file() { beside } else { "python3".into() };
        let mut command = Command::new(python);
        command.args(["-c", include_str!("s3_server.py"), &self.port.to_string()]);
        let port = self.port;
        self.server = Some(Server::start(command, &self.folder.join("moto.log"), || connects(port)));
        make_bucket(port);
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn bucket(&self) -> &str {
        BUCKET
    }

    /// `s3://<bucket>`.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}")
    }

    pub fn region(&self) -> &str {
        "us-east-1"
    }

    pub fn access_key_id(&self) -> &str {
        "test"
    }

    pub fn secret_access_key(&self) -> &str {
        "test"
    }
}

fn make_bucket(port: u16) {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("connect to moto_server");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
    // moto reads the service's name from the credential and checks no signature.
    let request = format!(
        "PUT /{BUCKET} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, \
         SignedHeaders=host, Signature=0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("ask moto_server for a bucket");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read moto_server's answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "moto_server did not make the bucket: {answer}");
}
