//! HTTP/1.1 by hand, so that every byte of a request is the test's own.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One request, `head` from its first line on without the blank one; the whole answer: status line, headers and body.
pub async fn http(url: &str, head: &str, body: &[u8]) -> String {
    try_http(url, head, body).await.expect("an HTTP answer")
}

/// `None` where nobody answers.
pub async fn try_http(url: &str, head: &str, body: &[u8]) -> Option<String> {
    let answer = try_http_bytes(url, head, body).await?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// As [`try_http`], for an answer that is no text.
pub async fn try_http_bytes(url: &str, head: &str, body: &[u8]) -> Option<Vec<u8>> {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.ok()?;
    let length = body.len();
    let head = format!("{head}Host: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(body).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    Some(answer)
}

/// The pieces of an answer's body that came in chunks.
pub fn chunks_of(answer: &[u8]) -> Vec<Vec<u8>> {
    let end_of_head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    let (mut rest, mut chunks) = (&answer[end_of_head..], Vec::new());
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").expect("a chunk's length");
        let length = std::str::from_utf8(&rest[..end]).expect("a number");
        let length = usize::from_str_radix(length, 16).expect("a number");
        if length == 0 {
            return chunks;
        }
        chunks.push(rest[end + 2..end + 2 + length].to_vec());
        rest = &rest[end + 2 + length + 2..];
    }
}

/// A header's value in an answer.
pub fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The JSON object that is an answer's body, whether it came in chunks or not.
pub fn body_of(answer: &str) -> &str {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    match (body.find('{'), body.rfind('}')) {
        (Some(from), Some(to)) => &body[from..=to],
        _ => body,
    }
}
