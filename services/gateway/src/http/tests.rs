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
    body: serde_json::Value,
    error: serde_json::Value,
}

/// A gateway whose services are away.
async fn gateway() -> Gateway {
    let folder = TempDir::new();
    let mut settings = Settings { cache_dir: folder.path().to_owned(), ..Settings::default() };
    let nobody = || "http://127.0.0.1:1".to_owned();
    (settings.services.registry, settings.services.dataset, settings.services.trainer) = (nobody(), nobody(), nobody());
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
        let head =
            format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.expect("send");
        stream.write_all(body).await.expect("send");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {answer}"));
        Answer { status, head: head.to_lowercase(), error: body["error"].clone(), body }
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

/// A form's fields as the stock client sends them.
fn form(fields: &[(&str, &str)]) -> Vec<u8> {
    let field = |(name, value): &(&str, &str)| {
        let file = if *name == "file" { "; filename=\"rows.jsonl\"" } else { "" };
        format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{value}\r\n")
    };
    let fields: String = fields.iter().map(field).collect();
    format!("{fields}--edge--\r\n").into_bytes()
}

const FORM: &str = "Content-Type: multipart/form-data; boundary=edge\r\n";
const FILES: &str = "POST /v1/files";
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
    for path in
        ["/v1/files", "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/j/events", "/v1/fine_tuning/jobs/j/checkpoints"]
    {
        for limit in ["x", "0", "-1", "1.5"] {
            let parts = [limit, "1 to 10000"];
            let answer = gateway.refuses(&format!("GET {path}?limit={limit}"), "", b"", 400, &parts).await;
            assert_eq!(answer.error["param"], "limit");
        }
    }
    let parts = ["multipart/form-data", "purpose", "file"];
    gateway.refuses(FILES, "Content-Type: application/json\r\n", b"{}", 400, &parts).await;
    gateway.refuses(FILES, "Content-Type: multipart/form-data\r\n", b"", 400, &parts).await;
    gateway.refuses(FILES, "", b"", 400, &parts).await;
    gateway.refuses("GET /v1/models/%ff", "", b"", 400, &["UTF-8"]).await;
}

#[tokio::test]
async fn a_name_that_no_model_can_have_is_a_model_that_does_not_exist() {
    let gateway = gateway().await;
    for model in ["meta-llama/Llama-3", "GPT-4", "little:a/b@1", "little:a@0", "ft:little:a@b/c"] {
        let chat = format!(r#"{{"model": "{model}", "messages": [{{"role": "user", "content": "x"}}]}}"#);
        let text = format!(r#"{{"model": "{model}", "prompt": "x"}}"#);
        let card = format!("GET /v1/models/{model}");
        for (request, body) in [(CHAT, chat.as_str()), (TEXT, text.as_str()), (card.as_str(), "")] {
            let answer = gateway.refuses(request, "", body.as_bytes(), 404, &[model, "does not exist"]).await;
            let said = (&answer.error["code"], &answer.error["param"]);
            assert_eq!(said, (&"model_not_found".into(), &"model".into()), "{request}");
        }
    }
    // What may be one is asked for, and here the registry is away.
    gateway.refuses("GET /v1/models/little", "", b"", 503, &[]).await;
}

#[tokio::test]
async fn a_file_for_another_purpose_is_refused_and_none_is_listed() {
    let gateway = gateway().await;
    for purpose in ["assistants", "user_data", "batch"] {
        let body = form(&[("purpose", purpose), ("file", "{}")]);
        let answer = gateway.refuses(FILES, FORM, &body, 400, &[purpose, "\"fine-tune\""]).await;
        assert_eq!(answer.error["param"], "purpose");
        let listed = gateway.ask(&format!("GET /v1/files?purpose={purpose}"), "", b"").await;
        assert_eq!((listed.status, listed.body["data"].clone()), (200, serde_json::json!([])));
    }
    let expires = form(&[("purpose", "fine-tune"), ("expires_after[seconds]", "3600"), ("file", "{}")]);
    gateway.refuses(FILES, FORM, &expires, 400, &["expires_after[seconds]", "leave it out"]).await;
    gateway.refuses(FILES, FORM, &form(&[("purpose", "fine-tune")]), 400, &["no file"]).await;
    gateway.refuses("GET /v1/files?order=up", "", b"", 400, &["\"up\"", "asc or desc"]).await;
}

#[tokio::test]
async fn what_is_not_served_is_refused_by_name_and_never_ignored() {
    let gateway = gateway().await;
    let chat = r#""model": "little", "messages": [{"role": "user", "content": "x"}]"#;
    let text = r#""model": "little", "prompt": "x""#;
    let job = r#""model": "little", "training_file": "file-1""#;
    for (request, rest, field, given, remedy) in [
        (CHAT, chat, "functions", r#"[{"name": "f"}]"#, "tools"),
        (CHAT, chat, "function_call", r#""auto""#, "tool_choice"),
        (TEXT, text, "best_of", "3", "leave it out"),
        (TEXT, text, "echo", "true", "leave it out"),
        (JOBS, job, "integrations", r#"[{"type": "wandb"}]"#, "tensorboard"),
        (JOBS, job, "metadata", r#"{"run": "7"}"#, "job's id"),
        (JOBS, job, "validation_file", r#""file-2""#, "leave it out"),
    ] {
        let body = format!("{{{rest}, \"{field}\": {given}}}");
        let answer = gateway.refuses(request, "", body.as_bytes(), 400, &[remedy]).await;
        assert_eq!(answer.error["param"], field, "{}", answer.error);
    }
    // Who says nothing by them is asked further: here the services are away.
    for (request, body) in [
        (CHAT, format!("{{{chat}, \"functions\": [], \"function_call\": null}}")),
        (TEXT, format!("{{{text}, \"best_of\": 2, \"n\": 2}}")),
        (JOBS, format!("{{{job}, \"integrations\": null, \"metadata\": {{}}}}")),
    ] {
        gateway.refuses(request, "", body.as_bytes(), 503, &[]).await;
    }
}
