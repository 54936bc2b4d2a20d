//! The registry as a model hub: the reading half of Hugging Face's protocol, on the registry's own port.
//!
//! With `HF_ENDPOINT=http://registry:50053`, `peft`, `transformers` and `huggingface_hub` load adapters as `adapters/NAME` and
//! bases as `bases/NAME`, or `NAME` alone, as an adapter's `base_model_name_or_path` has it. A revision is `main` (the latest
//! version), a version's number, an alias, or a commit. What a version is never changes, so its commit is made of its digest
//! and its number: it is found again without a list.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::routing::get;
use serde_json::{Value, json};
use tailor_domain::{
    AdapterManifest, AdapterName, AdapterRef, BaseManifest, BaseName, Digest, ErrorCode, FileRef, Selector, Version,
};
use tailor_serverkit::Coded as _;
use tailor_serverkit::trust::check_version;

use crate::{Error, Registry, Result};

/// Hexadecimal digits of a commit, as git's.
const COMMIT_DIGITS: usize = 40;
/// Of these the last ones are a version's number.
const VERSION_DIGITS: usize = 16;
/// Of a Git LFS pointer, which no client reads.
const POINTER_BYTES: u64 = 134;
/// Beginnings of the names of a base's files that belong to its tokenizer, which an adapter's repository has too.
const TOKENIZER_FILES: [&str; 7] =
    ["tokenizer", "special_tokens_map", "added_tokens", "chat_template", "vocab", "merges", "spiece"];

pub fn router(registry: Registry) -> Router {
    Router::new()
        .route("/api/models/{*rest}", get(model))
        .route("/adapters/{name}/resolve/{revision}/{file}", get(adapter_file))
        .route("/bases/{name}/resolve/{revision}/{file}", get(base_file))
        .route("/{name}/resolve/{revision}/{file}", get(base_file))
        .with_state(registry)
}

/// What a name and a revision mean.
struct Repository {
    id: String,
    commit: String,
    files: Vec<FileRef>,
    about: Value,
}

type Answer = Result<Response<Body>, Refusal>;

/// In the words that `huggingface_hub` makes its exceptions of.
struct Refusal {
    status: StatusCode,
    kind: Option<&'static str>,
    problem: String,
}

/// `ID`, `ID/revision/REVISION` or `ID/tree/REVISION`.
async fn model(State(registry): State<Registry>, Path(rest): Path<String>) -> Answer {
    let parts: Vec<&str> = rest.split('/').collect();
    let (id, question) = match parts.as_slice() {
        [owner @ ("adapters" | "bases"), name, question @ ..] => (format!("{owner}/{name}"), question),
        [name, question @ ..] => ((*name).to_owned(), question),
        [] => return Err(Refusal::no_repository(&rest)),
    };
    let (revision, as_tree) = match question {
        [] => ("main", false),
        ["revision", revision] => (*revision, false),
        ["tree", revision] | ["tree", revision, ""] => (*revision, true),
        _ => return Err(Refusal::no_entry(format!("{rest} is no question that this hub answers"))),
    };
    let repository = match id.split_once('/') {
        Some(("adapters", name)) => adapter(&registry, name, revision).await?,
        Some((_, name)) => base(&registry, name, revision, &id).await?,
        None => base(&registry, &id, revision, &id).await?,
    };
    let document = if as_tree { repository.tree() } else { repository.info() };
    answer(StatusCode::OK, &[(header::CONTENT_TYPE.as_str(), "application/json")], Body::from(document.to_string()))
}

async fn adapter_file(
    State(registry): State<Registry>,
    Path((name, revision, file)): Path<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Answer {
    let repository = adapter(&registry, &name, &revision).await?;
    serve(&registry, &repository, &file, &method, &headers).await
}

async fn base_file(
    State(registry): State<Registry>,
    Path((name, revision, file)): Path<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Answer {
    let repository = base(&registry, &name, &revision, &name).await?;
    serve(&registry, &repository, &file, &method, &headers).await
}

async fn adapter(registry: &Registry, name: &str, revision: &str) -> Result<Repository, Refusal> {
    let id = format!("adapters/{name}");
    let name = AdapterName::try_new(name).map_err(|_| Refusal::no_repository(&id))?;
    let committed = version_of(revision);
    let selector = match (revision, &committed) {
        ("main", _) => Selector::Latest,
        (_, Some(version)) => Selector::Version(*version),
        (other, None) => other.parse().map_err(|_| Refusal::no_revision(&id, revision))?,
    };
    let manifest = match registry.resolve(&AdapterRef { adapter: name.clone(), selector }).await {
        Ok(found) => found.manifest,
        Err(Error::NotFound { .. }) => {
            let any = registry.resolve(&AdapterRef { adapter: name, selector: Selector::Latest }).await;
            return Err(match any {
                Err(Error::NotFound { .. }) => Refusal::no_repository(&id),
                _ => Refusal::no_revision(&id, revision),
            });
        }
        Err(other) => return Err(other.into()),
    };
    // Who loads it from here checks no signature, so it is checked before it goes out.
    if let Err(error) = check_version(&manifest.as_ref().into(), &registry.trust.trusted) {
        return Err(Refusal { status: StatusCode::FORBIDDEN, kind: None, problem: error.to_string() });
    }
    let commit = commit_of(&manifest);
    if committed.is_some() && commit != revision {
        return Err(Refusal::no_revision(&id, revision));
    }
    let file =
        |name: &str, digest: &Digest, size_bytes| FileRef { name: name.into(), digest: digest.clone(), size_bytes };
    let config_bytes = registry.store.blob_size(&manifest.config).await.map_err(Error::from)?.unwrap_or(0);
    let mut files = vec![
        file("adapter_config.json", &manifest.config, config_bytes),
        file("adapter_model.safetensors", &manifest.weights, manifest.weights_size_bytes),
    ];
    match registry.base(&manifest.base).await {
        Ok(base) => files.extend(base.files.into_iter().filter(|file| belongs_to_tokenizer(&file.name))),
        // The adapter is served all the same.
        Err(error) => tracing::warn!(base = %manifest.base, %error, "an adapter's tokenizer cannot be listed"),
    }
    let about = json!({
        "library_name": "peft", "tags": ["peft"],
        "cardData": { "base_model": manifest.base, "library_name": "peft" },
        "tailor": { "version": manifest.version, "digest": manifest.digest() },
    });
    Ok(Repository { id, commit, files, about })
}

async fn base(registry: &Registry, name: &str, revision: &str, id: &str) -> Result<Repository, Refusal> {
    let name = BaseName::try_new(name).map_err(|_| Refusal::no_repository(id))?;
    let BaseManifest { fingerprint, files, .. } = match registry.base(&name).await {
        Err(Error::NotFound { .. }) => return Err(Refusal::no_repository(id)),
        found => found?,
    };
    let commit = fingerprint.hex()[..COMMIT_DIGITS].to_owned();
    if revision != "main" && revision != commit {
        return Err(Refusal::no_revision(id, revision));
    }
    let about =
        json!({ "library_name": "transformers", "tags": ["transformers"], "tailor": { "fingerprint": fingerprint } });
    Ok(Repository { id: id.to_owned(), commit, files, about })
}

fn belongs_to_tokenizer(file: &str) -> bool {
    TOKENIZER_FILES.iter().any(|beginning| file.starts_with(beginning))
}

fn commit_of(manifest: &AdapterManifest) -> String {
    let digest = manifest.digest();
    format!("{}{:0VERSION_DIGITS$x}", &digest.hex()[..COMMIT_DIGITS - VERSION_DIGITS], manifest.version.0)
}

/// The version that a commit ends in; None for what is no commit.
fn version_of(revision: &str) -> Option<Version> {
    let is_commit = revision.len() == COMMIT_DIGITS && revision.bytes().all(|digit| digit.is_ascii_hexdigit());
    let (_, number) = revision.split_at_checked(COMMIT_DIGITS - VERSION_DIGITS).filter(|_| is_commit)?;
    u64::from_str_radix(number, 16).ok().filter(|number| *number > 0).map(Version)
}

impl Repository {
    fn info(&self) -> Value {
        let file = |FileRef { name, digest, size_bytes: size }: &FileRef| {
            let lfs = json!({ "sha256": digest.hex(), "size": size, "pointerSize": POINTER_BYTES });
            json!({ "rfilename": name, "size": size, "blobId": &digest.hex()[..COMMIT_DIGITS], "lfs": lfs })
        };
        let files = self.files.iter().map(file);
        let mut info = json!({
            "id": self.id, "modelId": self.id, "sha": self.commit, "private": false, "gated": false, "disabled": false,
            "siblings": files.collect::<Vec<_>>(),
        });
        if let (Value::Object(info), Value::Object(about)) = (&mut info, &self.about) {
            info.extend(about.clone());
        }
        info
    }

    fn tree(&self) -> Value {
        let files = self.files.iter();
        let entry = |file: &FileRef| {
            let oid = file.digest.hex();
            let lfs = json!({ "oid": oid, "size": file.size_bytes, "pointerSize": POINTER_BYTES });
            json!({ "type": "file", "path": file.name, "size": file.size_bytes, "oid": &oid[..COMMIT_DIGITS], "lfs": lfs })
        };
        files.map(entry).collect()
    }
}

/// One file, whole or from a place on, with the headers by which a client knows what it has.
async fn serve(
    registry: &Registry,
    repository: &Repository,
    name: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Answer {
    let file = repository.files.iter().find(|file| file.name == name);
    let file = file.ok_or_else(|| Refusal::no_entry(format!("{name} is not in {}", repository.id)))?;
    let FileRef { digest, size_bytes: size, .. } = file;
    let etag = format!("\"{}\"", digest.hex());
    let range = range(headers, *size)?;
    let (start, end) = range.unwrap_or((0, *size));
    let length = (end - start).to_string();
    let size_text = size.to_string();
    let content_range = format!("bytes {start}-{}/{size}", end.saturating_sub(1));
    let mut own = vec![
        (header::ETAG.as_str(), etag.as_str()),
        ("x-linked-etag", &etag),
        ("x-linked-size", &size_text),
        ("x-repo-commit", &repository.commit),
        (header::ACCEPT_RANGES.as_str(), "bytes"),
        (header::CONTENT_LENGTH.as_str(), &length),
        (header::CONTENT_TYPE.as_str(), "application/octet-stream"),
    ];
    let status = match range {
        None => StatusCode::OK,
        Some(_) => {
            own.push((header::CONTENT_RANGE.as_str(), &content_range));
            StatusCode::PARTIAL_CONTENT
        }
    };
    let body = match (method == Method::HEAD, range) {
        (true, _) => Body::empty(),
        // Checked against its digest at the end: what is damaged breaks off.
        (false, None) => Body::from_stream(registry.download_blob(digest).await?),
        (false, Some(_)) => Body::from_stream(registry.part(digest, start, end)),
    };
    answer(status, &own, body)
}

/// `bytes=FROM-` or `bytes=FROM-TO` as a half-open range; other forms are answered with the whole file, as HTTP allows.
fn range(headers: &HeaderMap, size: u64) -> Result<Option<(u64, u64)>, Refusal> {
    let asked =
        headers.get(header::RANGE).and_then(|value| value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
    let Some((from, to)) = asked else { return Ok(None) };
    let Ok(from) = from.parse::<u64>() else { return Ok(None) };
    let end = match to.parse::<u64>() {
        Ok(last) => last.saturating_add(1).min(size),
        Err(_) if to.is_empty() => size,
        Err(_) => return Ok(None),
    };
    if from >= end {
        let problem = format!("the file has {size} bytes; there is none from {from} on");
        return Err(Refusal { status: StatusCode::RANGE_NOT_SATISFIABLE, kind: None, problem });
    }
    Ok(Some((from, end)))
}

fn answer(status: StatusCode, headers: &[(&str, &str)], body: Body) -> Answer {
    let response = headers
        .iter()
        .fold(Response::builder().status(status), |response, (name, value)| response.header(*name, *value));
    response.body(body).map_err(|error| Refusal {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        kind: None,
        problem: error.to_string(),
    })
}

impl Refusal {
    fn not_found(kind: &'static str, problem: String) -> Self {
        Self { status: StatusCode::NOT_FOUND, kind: Some(kind), problem }
    }

    fn no_repository(id: &str) -> Self {
        let problem = format!("{id} is not here; ask for adapters/NAME, bases/NAME or a base's NAME");
        Self::not_found("RepoNotFound", problem)
    }

    fn no_revision(id: &str, revision: &str) -> Self {
        let problem =
            format!("{id} has no revision {revision:?}; ask for main, a version's number, an alias or a commit");
        Self::not_found("RevisionNotFound", problem)
    }

    fn no_entry(problem: String) -> Self {
        Self::not_found("EntryNotFound", problem)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match error.code() {
            ErrorCode::InvalidArgument => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
            ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
            ErrorCode::AlreadyExists | ErrorCode::FailedPrecondition | ErrorCode::Aborted => StatusCode::CONFLICT,
            ErrorCode::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Unavailable | ErrorCode::Cancelled | ErrorCode::DeadlineExceeded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ErrorCode::DataLoss | ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, kind: None, problem: error.to_string() }
    }
}

impl axum::response::IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(json!({ "error": self.problem }).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(kind) = self.kind {
            headers.insert("x-error-code", HeaderValue::from_static(kind));
        }
        // A header holds visible ASCII; what a person sent may be anything.
        let words: String = self.problem.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
        if let Ok(words) = HeaderValue::from_str(&words) {
            headers.insert("x-error-message", words);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(value: &'static str) -> Result<Option<(u64, u64)>, Refusal> {
        range(&HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(value))]), 100)
    }

    #[test]
    fn a_range_is_half_open_and_ends_with_the_file() {
        for (value, wanted) in [
            ("bytes=10-", Some((10, 100))),
            ("bytes=0-0", Some((0, 1))),
            ("bytes=90-1000", Some((90, 100))),
            ("bytes=-5", None),
            ("lines=1-2", None),
            ("bytes=1-2,5-6", None),
        ] {
            assert_eq!(asked(value).ok().flatten(), wanted, "{value}");
        }
        for beyond in ["bytes=100-", "bytes=7-5"] {
            assert_eq!(asked(beyond).err().map(|refusal| refusal.status), Some(StatusCode::RANGE_NOT_SATISFIABLE));
        }
        assert!(range(&HeaderMap::new(), 100).is_ok_and(|whole| whole.is_none()));
    }

    #[test]
    fn a_commit_gives_its_version_back_and_other_words_give_none() {
        let commit = format!("{}{:016x}", "ab".repeat(12), 300);
        assert_eq!(version_of(&commit), Some(Version(300)));
        for other in ["main", "production", "3", &"0".repeat(40), &"g".repeat(40), &"é".repeat(20)] {
            assert_eq!(version_of(other), None, "{other}");
        }
    }
}
