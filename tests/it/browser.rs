//! A page of another origin: preflights, gRPC-Web and OpenAI's API as a browser uses them, over plain HTTP/1.1.

use crate::support::Up;
use crate::support::http::{header, http};

const PAGE: &str = "https://app.example";

fn preflight(path: &str, origin: &str) -> String {
    format!(
        "OPTIONS {path} HTTP/1.1\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: authorization,content-type,x-grpc-web,x-stainless-lang\r\n"
    )
}

const LIST: &str = "/tailor.inference.v1.InferenceService/ListModels";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_an_allowed_origin_may_call_and_no_other() {
    let origins = format!("http://localhost:5173, {PAGE}");
    let up = Up::with(&[("TAILOR__AUTH__TOKEN", "hush"), ("TAILOR__GATEWAY__CORS_ORIGINS", &origins)]).await;
    let gateway = &up.addresses.gateway;
    for path in [LIST, "/v1/chat/completions"] {
        // A browser sends no token with it.
        let allowed = http(gateway, &preflight(path, PAGE), b"").await;
        assert!(allowed.starts_with("HTTP/1.1 200"), "{allowed}");
        assert_eq!(header(&allowed, "access-control-allow-origin"), Some(PAGE));
        assert!(header(&allowed, "access-control-allow-methods").is_some_and(|methods| methods.contains("POST")));
        let headers = header(&allowed, "access-control-allow-headers").expect("headers");
        assert!(headers.contains("authorization") && headers.contains("x-stainless-lang"), "{headers}");
        assert_eq!(header(&allowed, "access-control-max-age"), Some("3600"));
        assert_eq!(header(&allowed, "access-control-allow-credentials"), None, "no cookie is asked for");
        let refused = http(gateway, &preflight(path, "https://elsewhere.example"), b"").await;
        assert_eq!(header(&refused, "access-control-allow-origin"), None, "{refused}");
    }

    let call = format!("POST {LIST} HTTP/1.1\r\nOrigin: {PAGE}\r\nContent-Type: application/grpc-web\r\n");
    // An empty ListModelsRequest: one frame without a byte in it.
    let answer = http(gateway, &format!("{call}Authorization: Bearer hush\r\n"), &[0; 5]).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("grpc-status:0"), "{answer}");
    assert_eq!(header(&answer, "access-control-allow-origin"), Some(PAGE));
    let exposed = header(&answer, "access-control-expose-headers").expect("what the page may read");
    assert!(exposed.contains("grpc-status") && exposed.contains("grpc-message"), "{exposed}");

    // The page can read why it was refused.
    let models = format!("GET /v1/models HTTP/1.1\r\nOrigin: {PAGE}\r\n");
    let refused = http(gateway, &models, b"").await;
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("authentication_error"), "{refused}");
    assert_eq!(header(&refused, "access-control-allow-origin"), Some(PAGE));
    let listed = http(gateway, &format!("{models}Authorization: Bearer hush\r\n"), b"").await;
    assert!(listed.starts_with("HTTP/1.1 200"), "{listed}");
    assert_eq!(header(&listed, "access-control-allow-origin"), Some(PAGE));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_no_page_may_call() {
    let up = Up::start().await;
    let answer = http(&up.addresses.gateway, &preflight("/v1/chat/completions", PAGE), b"").await;
    assert_eq!(header(&answer, "access-control-allow-origin"), None, "{answer}");
    let listed = http(&up.addresses.gateway, &format!("GET /v1/models HTTP/1.1\r\nOrigin: {PAGE}\r\n"), b"").await;
    assert!(listed.starts_with("HTTP/1.1 200"), "whoever is no page is served: {listed}");
    assert_eq!(header(&listed, "access-control-allow-origin"), None, "{listed}");
}
