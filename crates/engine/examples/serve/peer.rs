//! llama.cpp by way of `tests/bench/serve_peer.py`, in a process of its own that waits for work.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tailor_testkit::LlamaShape;

use crate::Failure;

pub struct Peer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Makes its model at `file` and loads it.
    pub fn start(file: &Path, shape: &LlamaShape) -> Result<Self, Failure> {
        let python = std::env::var("TAILOR_PEER_PYTHON")
            .map_err(|_| "TAILOR_PEER_PYTHON names no Python with llama-cpp-python; run `cargo xtask bench serve`")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/bench/serve_peer.py");
        let LlamaShape { hidden, layers, feed_forward, vocab, heads, kv_heads, .. } = shape;
        let sides = format!("{hidden},{layers},{feed_forward},{vocab},{heads},{kv_heads}");
        let mut command = Command::new(python);
        command.arg(script).arg(file).arg(sides).arg(tch::get_num_threads().to_string());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().ok_or("no input")?;
        let output = BufReader::new(process.stdout.take().ok_or("no output")?);
        let mut peer = Self { process, input, output };
        peer.line()?;
        Ok(peer)
    }

    pub fn decode(&mut self, sequences: usize, steps: usize) -> Result<f64, Failure> {
        self.seconds(&format!("decode {sequences} {steps}"))
    }

    pub fn prefill(&mut self, tokens: usize) -> Result<f64, Failure> {
        self.seconds(&format!("prefill {tokens}"))
    }

    fn seconds(&mut self, work: &str) -> Result<f64, Failure> {
        writeln!(self.input, "{work}")?;
        Ok(self.line()?.trim().parse()?)
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(format!("the peer ended: {}", self.process.wait()?).into());
        }
        Ok(line)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It waits for work; without it there is nothing to lose.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
