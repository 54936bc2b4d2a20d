//! OpenAI's API on the gateway's port: the stock client walks the loop, and gRPC-Web stands beside it.

use std::process::Command;

use crate::support::http::http;
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
