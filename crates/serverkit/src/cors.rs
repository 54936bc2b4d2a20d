//! Which web pages may call a service from a browser (WHATWG Fetch, §3.2): gRPC-Web and OpenAI's API alike.
//!
//! Preflights carry no token, so this stands before the token's check; what that refuses can be read by the page, too.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// How long a browser may remember a preflight's answer.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// Answers' headers that a page may read: gRPC-Web's end of a call, and when to come again.
const EXPOSED: [&str; 4] = ["grpc-status", "grpc-message", "grpc-status-details-bin", "retry-after"];

/// The origins of `settings.gateway.cors_origins`: parted by commas, each `scheme://host[:port]`, or `*` alone for every page
/// of the web. Empty: none.
///
/// # Errors
/// What is no origin, with what it should be.
pub fn origins(list: &str) -> Result<Vec<HeaderValue>, String> {
    let named: Vec<&str> = list.split(',').map(str::trim).filter(|origin| !origin.is_empty()).collect();
    if named.len() > 1 && named.contains(&"*") {
        return Err("* stands for every origin; leave the others out, or leave it out".into());
    }
    named.into_iter().map(origin).collect()
}

fn origin(text: &str) -> Result<HeaderValue, String> {
    let wrong = || format!("{text:?} is no origin; write https://host or https://host:port, or * for every origin");
    let value = HeaderValue::from_str(text).map_err(|_| wrong())?;
    if text == "*" {
        return Ok(value);
    }
    let uri: http::Uri = text.parse().map_err(|_| wrong())?;
    // A browser compares letter by letter: a path, even a lone slash, would never match.
    let is_origin = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && !text.ends_with('/')
        && uri.path_and_query().is_none_or(|rest| rest.as_str() == "/")
        && text.chars().all(|character| !character.is_ascii_uppercase());
    if is_origin { Ok(value) } else { Err(wrong()) }
}

/// Answers preflights and marks what pages of these origins may read; None where no page may call.
pub fn layer(origins: Vec<HeaderValue>) -> Option<CorsLayer> {
    let allowed = match origins.as_slice() {
        [] => return None,
        [one] if one == "*" => AllowOrigin::any(),
        _ => AllowOrigin::list(origins),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // Clients send headers of their own (x-grpc-web, x-stainless-…); no cookie is ever read, so none of them opens a door.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED.map(HeaderName::from_static))
        .max_age(MAX_AGE);
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_parted_by_commas_and_what_is_none_is_named() {
        let read = |list: &str| origins(list).map(|read| read.len());
        assert_eq!(read(""), Ok(0));
        assert_eq!(read("https://a.example, http://localhost:5173"), Ok(2));
        assert_eq!(read("*"), Ok(1));
        for wrong in [
            "https://a.example/",
            "https://a.example/page",
            "a.example",
            "ftp://a.example",
            "https://u@a.example",
            "https://A.example",
            "*,https://a.example",
        ] {
            assert!(origins(wrong).is_err(), "{wrong}");
        }
        assert!(origins("a.example").expect_err("no origin").contains("write https://host"));
    }

    #[test]
    fn without_an_origin_there_is_no_layer() {
        assert!(layer(Vec::new()).is_none());
        assert!(layer(origins("*").expect("valid")).is_some());
    }
}
