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
        let open = request.uri().path().starts_with("/grpc.health.v1.Health/");
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
        Either::Right(ready(Ok(tonic::Status::unauthenticated(problem).into_http())))
    }
}
