//! A shared token at every service's door. Health stays open: a load balancer has no secrets.

use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

/// Refuses calls without the token; lets everything through when there is none.
#[derive(Clone)]
pub struct AuthLayer {
    expected: Option<String>,
}

impl AuthLayer {
    pub fn new(token: Option<&str>) -> Self {
        Self { expected: token.map(|token| format!("Bearer {token}")) }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = AuthService<S>;
    fn layer(&self, inner: S) -> AuthService<S> {
        AuthService { inner, expected: self.expected.clone() }
    }
}

#[derive(Clone)]
pub struct AuthService<S> {
    inner: S,
    expected: Option<String>,
}

/// As the caller's protocol has it: a gRPC status, or HTTP's own code with a body of OpenAI's shape.
fn refusal<B>(request: &Request<B>, problem: &str) -> Response<Body> {
    let kind = request.headers().get(http::header::CONTENT_TYPE).map(|value| value.as_bytes());
    if kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
        return tonic::Status::unauthenticated(problem).into_http();
    }
    // The problems are constants without anything that JSON would escape.
    let body = format!(
        r#"{{"error":{{"message":"{problem}","type":"authentication_error","param":null,"code":"invalid_api_key"}}}}"#
    );
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = http::StatusCode::UNAUTHORIZED;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

/// Compares in time that depends on the lengths alone.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

impl<S, B> Service<Request<B>> for AuthService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let open = path.starts_with("/grpc.health.v1.Health/") || path == "/readyz";
        let given = request.headers().get(http::header::AUTHORIZATION).map(|value| value.as_bytes());
        let allowed = match &self.expected {
            None => true,
            Some(expected) => open || given.is_some_and(|given| same(given, expected.as_bytes())),
        };
        if allowed {
            return Either::Left(self.inner.call(request));
        }
        let problem = match given {
            None => "no token given; send `authorization: Bearer <token>` (tailor: set TAILOR_TOKEN)",
            Some(_) => "the token is not valid here",
        };
        Either::Right(ready(Ok(refusal(&request, problem))))
    }
}
