//! An HTTP server for the tests of this folder that can break off, refuse, and ignore ranges.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What to do with one request. After the last, ranges are answered properly.
pub enum Answer {
    /// Promise the range, send this many bytes of it, and hang up.
    BreakOffAfter(usize),
    /// Ignore the range and send everything.
    Whole,
    WholeBreakOffAfter(usize),
    Status(u16),
}

pub struct TestServer {
    address: String,
    ranges: Arc<Mutex<Vec<String>>>,
    /// Answering ends when this is set.
    stopped: Arc<Mutex<bool>>,
}

impl TestServer {
    pub fn start(body: Vec<u8>, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(Mutex::new(false));
        let (seen, stop) = (ranges.clone(), stopped.clone());
        let mut answers = VecDeque::from(answers);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if *stop.lock().unwrap() {
                    return;
                }
                serve(stream.unwrap(), &body, answers.pop_front(), &seen);
            }
        });
        Self { address, ranges, stopped }
    }

    pub fn url(&self) -> String {
        format!("http://{}/file.whl", self.address)
    }

    /// The Range header of each request so far.
    pub fn ranges(&self) -> Vec<String> {
        self.ranges.lock().unwrap().clone()
    }

    /// Stops listening and gives the address where nothing answers any more.
    pub fn stop(self) -> String {
        *self.stopped.lock().unwrap() = true;
        let _ = TcpStream::connect(&self.address);
        self.url()
    }
}

fn serve(mut stream: TcpStream, body: &[u8], answer: Option<Answer>, seen: &Mutex<Vec<String>>) {
    let lines: Vec<String> =
        BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let range = lines
        .iter()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("range: ").map(str::to_owned))
        .unwrap_or_default();
    seen.lock().unwrap().push(range.clone());
    let (first, last) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
    let first: usize = first.parse().unwrap();
    let end = last.parse::<usize>().map_or(body.len(), |last| last + 1);

    let (head, promised, sent) = match answer {
        None => (
            format!("206 Partial Content\r\nContent-Range: bytes {first}-{}/{}", end - 1, body.len()),
            first..end,
            end - first,
        ),
        Some(Answer::BreakOffAfter(sent)) => (
            format!("206 Partial Content\r\nContent-Range: bytes {first}-{}/{}", end - 1, body.len()),
            first..end,
            sent,
        ),
        Some(Answer::Whole) => ("200 OK".to_owned(), 0..body.len(), body.len()),
        Some(Answer::WholeBreakOffAfter(sent)) => ("200 OK".to_owned(), 0..body.len(), sent),
        Some(Answer::Status(status)) => (format!("{status} No"), 0..0, 0),
    };
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", promised.len());
    // The client may hang up first: that is its right.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body[promised][..sent]);
    let _ = stream.shutdown(Shutdown::Both);
}
