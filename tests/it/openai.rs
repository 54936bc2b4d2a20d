//! OpenAI's API on the gateway's port: the stock client walks the loop, and gRPC-Web stands beside it.

use std::process::Command;
use std::time::Duration;

use prost::Message as _;
use tailor_pb::inference::{GenerateChunk, GenerateRequest};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::http::{body_of, chunks_of, http, try_http_bytes};
use crate::support::{Family, Up, repository};

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_openai_client_uploads_trains_watches_and_chats() {
    let Some(python) = std::env::var_os("TAILOR_TEST_PYTHON").filter(|path| !path.is_empty()) else {
        return tailor_testkit::skipped("TAILOR_TEST_PYTHON does not name a Python with openai");
    };
    let up = Up::start().await;
    let folder = Family::Llama.write(up.folder.path());
    let folder = folder.display().to_string();
    up.cli().text(&["base", "add", &folder, "--name", Family::Llama.base(), "--dtype", "f32"]);
    let mut walk = Command::new(python);
    walk.arg(repository().join("tests/python/openai_client.py")).arg(&up.addresses.gateway).arg(Family::Llama.base());
    let done = walk.output().expect("run the client");
    let (output, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "the client failed:\n{output}\n{errors}\n{}", up.process.log());
    assert!(output.contains("\nwalked the loop"), "{output}");
    print!("{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_web_is_answered_on_the_same_port_and_a_token_is_asked_of_all() {
    let up = Up::with(&[("TAILOR__AUTH__TOKEN", "hush")]).await;
    let gateway = &up.addresses.gateway;
    // An empty ListModelsRequest: one frame without a byte in it.
    let web =
        "POST /tailor.inference.v1.InferenceService/ListModels HTTP/1.1\r\nContent-Type: application/grpc-web\r\n";
    let answer = http(gateway, &format!("{web}Authorization: Bearer hush\r\n"), &[0; 5]).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("grpc-status:0"), "{answer}");
    let models = "GET /v1/models HTTP/1.1\r\n";
    let refused = http(gateway, models, b"").await;
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("authentication_error"), "{refused}");
    let allowed = http(gateway, &format!("{models}Authorization: Bearer hush\r\n"), b"").await;
    assert!(allowed.starts_with("HTTP/1.1 200") && allowed.contains(r#""object":"list""#), "{allowed}");
    let nowhere = http(gateway, "GET /v1/nowhere HTTP/1.1\r\nAuthorization: Bearer hush\r\n", b"").await;
    assert!(nowhere.starts_with("HTTP/1.1 404") && nowhere.contains("invalid_request_error"), "{nowhere}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_over_the_datasets_limit_is_413_in_openais_shape() {
    let up = Up::with(&[("TAILOR__DATASET__MAX_UPLOAD_BYTES", "1000")]).await;
    let form = |rows: &str| {
        let purpose = "--edge\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n";
        let file = "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"rows.jsonl\"\r\n\r\n";
        format!("{purpose}{file}{rows}\r\n--edge--\r\n")
    };
    let head = "POST /v1/files HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=edge\r\n";
    let large = form(&"{\"input\": \"a\", \"target\": \"b\"}\n".repeat(100));
    let refused = http(&up.addresses.gateway, head, large.as_bytes()).await;
    assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");
    let body: serde_json::Value = serde_json::from_str(body_of(&refused)).expect("an error in JSON");
    assert_eq!(body["error"]["type"], "invalid_request_error", "{body}");
    let message = body["error"]["message"].as_str().expect("a message");
    assert!(message.contains("limit of 1000 bytes (dataset.max_upload_bytes)"), "{message}");
}

async fn files(gateway: &str) -> usize {
    let listed = http(gateway, "GET /v1/files HTTP/1.1\r\n", b"").await;
    let listed: serde_json::Value = serde_json::from_str(body_of(&listed)).expect("a list");
    listed["data"].as_array().expect("files").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_breaks_off_on_its_way_is_none() {
    let up = Up::start().await;
    let gateway = up.addresses.gateway.as_str();
    let rows: String = (0..200).map(|n| format!("{{\"input\": \"row {n}\", \"target\": \"Row {n}.\"}}\n")).collect();
    let purpose = "--edge\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n";
    let file = "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"rows.jsonl\"\r\n\r\n";
    let form = format!("{purpose}{file}{rows}\r\n--edge--\r\n");
    let head = "POST /v1/files HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=edge\r\n";
    let half = &form.as_bytes()[..form.len() / 2];

    // A proxy that lost the rest, and says how much there is of it.
    let refused = http(gateway, head, half).await;
    assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("the form cannot be read"), "{refused}");
    // A client that went away.
    let mut connection = TcpStream::connect(gateway.trim_start_matches("http://")).await.expect("connect");
    let length = form.len();
    let head_of_all = format!("{head}Host: x\r\nContent-Length: {length}\r\n\r\n");
    connection.write_all(head_of_all.as_bytes()).await.expect("send");
    connection.write_all(half).await.expect("send");
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(connection);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(files(gateway).await, 0, "half of the rows are no file");
    }

    let made = http(gateway, head, form.as_bytes()).await;
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    assert_eq!(files(gateway).await, 1, "all of them are");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_web_streams_an_answer_as_it_is_said() {
    let up = Up::start().await;
    up.add_base_and_rows(Family::Llama).await;
    let request = GenerateRequest {
        base: Family::Llama.base().into(),
        input: "anna sees a boat".into(),
        max_new_tokens: 24,
        logit_bias: [(1, -1000.0)].into(),
        ..Default::default()
    };
    let said = up.addresses.gateway().generate(request.clone()).await.expect("an answer").into_inner();
    let message = request.encode_to_vec();
    let frame = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    let head = "POST /tailor.inference.v1.InferenceService/GenerateStream HTTP/1.1\r\n\
                Content-Type: application/grpc-web+proto\r\n";
    let answer = try_http_bytes(&up.addresses.gateway, head, &frame).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let body = chunks_of(&answer).concat();
    let (mut rest, mut chunks, mut text, mut end, mut trailers) = (&body[..], 0, String::new(), None, String::new());
    while let [flags, a, b, c, d, after @ ..] = rest {
        let (frame, next) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        if flags & 0x80 == 0 {
            let chunk = GenerateChunk::decode(frame).expect("a chunk");
            chunks += 1;
            text.push_str(&chunk.text);
            end = chunk.end.or(end);
        } else {
            trailers.push_str(&String::from_utf8_lossy(frame));
        }
        rest = next;
    }
    assert!(rest.is_empty() && trailers.contains("grpc-status:0"), "{trailers:?}");
    let end = end.expect("the last chunk has the figures");
    assert!(chunks > 2, "{text:?} came in {chunks} chunks");
    assert_eq!((text, end.completion_tokens), (said.text, 24));
}
