//! What is refused before any service is asked, byte for byte over a socket.

use std::net::SocketAddr;

use tailor_blobs::Store;
use tailor_testkit::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;

struct Gateway {
    address: SocketAddr,
    _folder: TempDir,
    _hindrances: watch::Sender<Vec<String>>,
}

struct Answer {
    status: u16,
    head: String,
    error: serde_json::Value,
}

/// A gateway whose services are away.
async fn gateway() -> Gateway {
    let folder = TempDir::new();
    let settings = Settings { cache_dir: folder.path().to_owned(), ..Settings::default() };
    let table = Arc::new(crate::routes::Routes::new(&settings).expect("an address"));
    let models = Models::new(&settings, Store::memory(), table, None).expect("settings");
    let (sender, hindrances) = watch::channel(Vec::new());
    let rollouts = Arc::new(Rollouts::new(Arc::new(models)));
    let routes = routes(rollouts, hindrances, &settings).expect("addresses");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Gateway { address, _folder: folder, _hindrances: sender }
}

impl Gateway {
    async fn ask(&self, request: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.expect("connect");
        let length = body.len();
        let head = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.expect("send");
        stream.write_all(body).await.expect("send");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {answer}"));
        Answer { status, head: head.to_lowercase(), error: body["error"].clone() }
    }

    /// An error in OpenAI's shape, and what its message must say.
    async fn refuses(&self, request: &str, headers: &str, body: &[u8], status: u16, parts: &[&str]) -> Answer {
        let answer = self.ask(request, headers, body).await;
        assert_eq!(answer.status, status, "{request}: {}", answer.error);
        let message = answer.error["message"].as_str().expect("a message");
        for part in parts {
            assert!(message.contains(part), "{request}: {part:?} is not in {message:?}");
        }
        for field in ["type", "param", "code"] {
            assert!(answer.error.get(field).is_some(), "{request}: no {field} in {}", answer.error);
        }
        answer
    }
}

const CHAT: &str = "POST /v1/chat/completions";
const TEXT: &str = "POST /v1/completions";
const JOBS: &str = "POST /v1/fine_tuning/jobs";

#[tokio::test]
async fn what_http_itself_refuses_has_openais_shape_too() {
    let gateway = gateway().await;
    let answer = gateway.refuses("GET /v1/chat/completions", "", b"", 405, &["/v1/chat/completions", "GET"]).await;
    assert!(answer.head.contains("\r\nallow: post"), "{}", answer.head);
    gateway.refuses("DELETE /v1/files", "", b"", 405, &["DELETE"]).await;
    gateway.refuses("POST /readyz", "", b"", 405, &["POST"]).await;
    gateway.refuses("GET /v1/nowhere", "", b"", 404, &["/v1/nowhere"]).await;
    let long = vec![b' '; MAX_BODY_BYTES + 1];
    for path in [CHAT, TEXT, JOBS] {
        gateway.refuses(path, "", &long, 413, &["4194304 bytes", "/v1/files"]).await;
        gateway.refuses(path, "", b"{", 400, &["the body cannot be read"]).await;
    }
    for path in ["/v1/files", "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/j/events", "/v1/fine_tuning/jobs/j/checkpoints"]
    {
        for limit in ["x", "0", "-1", "1.5"] {
            let parts = [limit, "1 to 10000"];
            let answer = gateway.refuses(&format!("GET {path}?limit={limit}"), "", b"", 400, &parts).await;
            assert_eq!(answer.error["param"], "limit");
        }
    }
    let parts = ["multipart/form-data", "purpose", "file"];
    gateway.refuses("POST /v1/files", "Content-Type: application/json\r\n", b"{}", 400, &parts).await;
    gateway.refuses("POST /v1/files", "Content-Type: multipart/form-data\r\n", b"", 400, &parts).await;
    gateway.refuses("POST /v1/files", "", b"", 400, &parts).await;
    gateway.refuses("GET /v1/models/%ff", "", b"", 400, &["UTF-8"]).await;
}
