//! HTTP: one request after the other, with patience.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use crate::{Error, Result};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Tries of one request; a transfer that made progress begins to count anew.
pub(crate) const ATTEMPTS: u32 = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Without a byte for so long, a transfer has broken off.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// A hub that wants a longer pause is told to the caller instead.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Where from, as whom, and where to.
#[derive(Debug, Clone)]
pub struct HubOptions {
    pub endpoint: String,
    /// Sent to the endpoint alone, never to where it redirects.
    pub token: Option<String>,
    /// Never ask the hub: what is not in the cache is not found.
    pub offline: bool,
    pub cache: PathBuf,
    /// The pause before the second try; it doubles.
    pub pause: Duration,
}

impl HubOptions {
    /// From `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`, as Hugging Face's own tools read them.
    pub fn from_env(cache: PathBuf) -> Self {
        let set = |name: &str| std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|v| !v.is_empty());
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            token: set("HF_TOKEN"),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "no" | "off")),
            cache,
            pause: Duration::from_secs(1),
        }
    }
}

/// A hub.
pub struct Hub {
    pub(crate) options: HubOptions,
    endpoint: Url,
    client: reqwest::Client,
}

impl Hub {
    /// # Errors
    /// The endpoint is no http address, or the token cannot stand in a header.
    pub fn new(options: HubOptions) -> Result<Self> {
        let setting = |name: &str, problem: String| Error::Setting(format!("{name}: {problem}"));
        let endpoint = Url::parse(&options.endpoint)
            .map_err(|error| setting("HF_ENDPOINT", format!("{:?}: {error}", options.endpoint)))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.cannot_be_a_base() {
            return Err(setting("HF_ENDPOINT", format!("{:?} is no http or https address", options.endpoint)));
        }
        let mut headers = HeaderMap::new();
        if let Some(token) = &options.token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| setting("HF_TOKEN", "it has letters that no header can carry".into()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // reqwest drops the token where a redirect leaves the host.
        let client = reqwest::Client::builder()
            .user_agent(concat!("tailor/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .default_headers(headers)
            .build()
            .map_err(|error| Error::Setting(format!("the HTTP client cannot be made: {error}")))?;
        Ok(Self { options, endpoint, client })
    }

    pub(crate) fn url(&self, segments: &[&str]) -> Result<Url> {
        let mut url = self.endpoint.clone();
        let problem = || Error::Setting(format!("HF_ENDPOINT: {} cannot be extended", self.endpoint));
        let mut path = url.path_segments_mut().map_err(|()| problem())?;
        path.pop_if_empty().extend(segments.iter().flat_map(|segment| segment.split('/')));
        drop(path);
        Ok(url)
    }

    /// One good answer, asked for again while the hub is busy or out of reach.
    pub(crate) async fn get(&self, url: &Url, what: &str, from: u64) -> Result<Response> {
        let mut attempt = 1;
        loop {
            let outcome = self.try_get(url, what, from).await;
            let (error, pause) = match outcome {
                Ok(response) => return Ok(response),
                Err((error, Some(pause))) if attempt < ATTEMPTS => (error, pause),
                Err((Error::Busy { what, endpoint, status, .. }, _)) => {
                    return Err(Error::Busy { what, endpoint, status, attempts: attempt });
                }
                Err((error, _)) => return Err(error),
            };
            let pause = pause.unwrap_or_else(|| self.pause(attempt));
            tracing::debug!(%error, ?pause, attempt, "asking the hub again");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// `Err` with `Some` can be tried again, after the pause that the hub asks for if it asks.
    async fn try_get(
        &self,
        url: &Url,
        what: &str,
        from: u64,
    ) -> std::result::Result<Response, (Error, Option<Option<Duration>>)> {
        let mut request = self.client.get(url.clone());
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let (what, endpoint) = (what.to_owned(), self.options.endpoint.clone());
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                // Nobody there is told at once: most often the id was meant to be a folder, or there is no network.
                let again = (!error.is_connect()).then_some(None);
                let problem = format!("{endpoint} does not answer: {}", chain(&error));
                return Err((Error::Transfer { what, problem }, again));
            }
        };
        let status = response.status();
        match status {
            _ if status.is_success() => Ok(response),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Err((Error::content(what, "what was fetched before is longer than the hub's file"), None))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err((Error::Access { what, endpoint, status: status.as_u16() }, None))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err((Error::NotFound { what, endpoint }, None)),
            _ if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                let asked = retry_after(&response);
                let busy = Error::Busy { what, endpoint, status: status.as_u16(), attempts: 1 };
                let patient = asked.is_none_or(|asked| asked <= LONGEST_PAUSE);
                Err((busy, patient.then_some(asked)))
            }
            _ => Err((Error::content(what, format!("{endpoint} answers {status}")), None)),
        }
    }

    /// A second, two, four, …
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        (self.options.pause * 2u32.saturating_pow(attempt - 1)).min(LONGEST_PAUSE)
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An error with its causes: reqwest's own text says little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
