//! A model hub that misbehaves on demand. It speaks Hugging Face's protocol: `/api/models/ID/revision/REVISION` and `/ID/resolve/COMMIT/FILE`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::StreamExt as _;
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

/// The one repository that a [`HubServer`] has.
pub const HUB_REPO: &str = "google/tiny-model";

/// What one request for a file gets instead.
#[derive(Debug, Clone, Copy)]
pub enum HubFault {
    /// So many bytes of what was asked for, then the end of the connection.
    BreakOff(usize),
    IgnoreRange,
    /// One bit of the content is another.
    Flip,
    /// One byte more than there is.
    Longer,
    Status(u16),
    /// 429 with so many seconds.
    RetryAfter(u64),
}

#[derive(Default)]
struct Inside {
    files: BTreeMap<String, Vec<u8>>,
    /// Files of every commit so far.
    commits: HashMap<String, BTreeMap<String, Vec<u8>>>,
    commit: String,
    faults: HashMap<String, VecDeque<HubFault>>,
    ranges: HashMap<String, Vec<String>>,
    tokens: Vec<Option<String>>,
    token: Option<String>,
    redirect: Option<String>,
    requests: usize,
    file_requests: usize,
}

#[derive(Clone)]
pub struct HubServer {
    address: String,
    inside: Arc<Mutex<Inside>>,
}

impl HubServer {
    pub async fn single() -> Self {
        Self::start([("model.safetensors", weights(1)), ("pytorch_model.bin", weights(2))]).await
    }

    pub async fn sharded() -> Self {
        let index = br#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}}"#;
        Self::start([
            ("model.safetensors.index.json", index.to_vec()),
            ("model-00001-of-00002.safetensors", weights(1)),
            ("model-00002-of-00002.safetensors", weights(2)),
            ("model-00003-of-00003.safetensors", weights(3)),
            ("tf_model.h5", weights(4)),
        ])
        .await
    }

    pub async fn pickled() -> Self {
        Self::start([("pytorch_model.bin", weights(1))]).await
    }

    pub async fn with_index(name: &str) -> Self {
        let index = format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#);
        Self::start([("model.safetensors.index.json", index.into_bytes())]).await
    }

    /// A repository with the files of a folder.
    ///
    /// # Panics
    /// The folder cannot be read.
    pub async fn of_folder(folder: &std::path::Path) -> Self {
        let entries = std::fs::read_dir(folder).expect("read the folder");
        let files = entries.map(|entry| {
            let path = entry.expect("read the folder").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, std::fs::read(path).expect("read a file"))
        });
        Self::serve(files.collect()).await
    }

    async fn start<const N: usize>(more: [(&str, Vec<u8>); N]) -> Self {
        let small =
            [("config.json", b"{}".to_vec()), ("tokenizer.json", b"{\"a\": 1}".to_vec()), ("README.md", weights(9))];
        let files = small.into_iter().chain(more).map(|(name, content)| (name.to_owned(), content)).collect();
        Self::serve(files).await
    }

    async fn serve(files: BTreeMap<String, Vec<u8>>) -> Self {
        let inside = Arc::new(Mutex::new(Inside { files, ..Inside::default() }));
        let router = Router::new()
            .route("/api/models/{owner}/{name}/revision/{revision}", get(revision))
            .route("/{owner}/{name}/resolve/{commit}/{file}", get(file))
            .with_state(inside.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let server = Self { address, inside };
        server.commit_files();
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("nobody panicked with it")
    }

    fn commit_files(&self) {
        let mut inside = self.lock();
        let commit = format!("{:x}", Sha1::digest(format!("{:?}", inside.files)));
        let files = inside.files.clone();
        inside.commits.insert(commit.clone(), files);
        inside.commit = commit;
    }

    pub fn move_branch(&self, name: &str, content: &[u8]) {
        self.lock().files.insert(name.to_owned(), content.to_vec());
        self.commit_files();
    }

    pub fn commit(&self) -> String {
        self.lock().commit.clone()
    }

    pub fn content(&self, name: &str) -> Vec<u8> {
        self.lock().files[name].clone()
    }

    pub fn fail(&self, name: &str, faults: impl IntoIterator<Item = HubFault>) {
        self.lock().faults.insert(name.to_owned(), faults.into_iter().collect());
    }

    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    pub fn require_token(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }

    /// Weights are on another host from now on, as on the real hub.
    pub async fn redirect_weights(&self) -> Self {
        let files = self.lock().files.clone();
        let other = Self::start([]).await;
        other.lock().files = files;
        other.commit_files();
        // Another name of the same machine: another host to a client.
        let address = other.address.replace("127.0.0.1", "localhost");
        self.lock().redirect = Some(format!("http://{address}/{HUB_REPO}/resolve/{}", other.commit()));
        other
    }

    pub fn requests(&self) -> usize {
        self.lock().requests
    }

    pub fn file_requests(&self) -> usize {
        self.lock().file_requests
    }

    /// The Range header of each request for a file so far.
    pub fn ranges(&self, name: &str) -> Vec<String> {
        self.lock().ranges.get(name).cloned().unwrap_or_default()
    }

    /// The Authorization header of each request so far.
    pub fn tokens(&self) -> Vec<Option<String>> {
        self.lock().tokens.clone()
    }
}

type Shared = State<Arc<Mutex<Inside>>>;

fn weights(seed: u32) -> Vec<u8> {
    (0..20_000u32).map(|i| (i.wrapping_mul(seed.wrapping_mul(2_654_435_761)) >> 24) as u8).collect()
}

fn is_lfs(name: &str) -> bool {
    !name.ends_with(".json")
}

impl Inside {
    /// Takes note of a request; an answer if it ends here.
    fn meet(&mut self, headers: &HeaderMap, repo: &str) -> Option<Response> {
        self.requests += 1;
        let token =
            headers.get(header::AUTHORIZATION).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        self.tokens.push(token.clone());
        if repo != HUB_REPO {
            return Some(StatusCode::NOT_FOUND.into_response());
        }
        let wanted = self.token.as_ref().map(|token| format!("Bearer {token}"));
        (wanted.is_some() && wanted != token).then(|| StatusCode::UNAUTHORIZED.into_response())
    }
}

async fn revision(
    State(inside): Shared,
    Path((owner, name, revision)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let mut inside = inside.lock().expect("nobody panicked with it");
    if let Some(answer) = inside.meet(&headers, &format!("{owner}/{name}")) {
        return answer;
    }
    let commit = if revision == "main" { inside.commit.clone() } else { revision };
    let Some(files) = inside.commits.get(&commit) else { return StatusCode::NOT_FOUND.into_response() };
    let siblings: Vec<_> = files
        .iter()
        .map(|(name, content)| {
            let git = format!("{:x}", Sha1::digest([format!("blob {}\0", content.len()).as_bytes(), content].concat()));
            let sha256 = format!("{:x}", Sha256::digest(content));
            let lfs = serde_json::json!({ "sha256": sha256, "size": content.len(), "pointerSize": 134 });
            let mut file = serde_json::json!({ "rfilename": name, "size": content.len(), "blobId": git });
            if is_lfs(name) {
                file["lfs"] = lfs;
            }
            file
        })
        .collect();
    serde_json::json!({ "id": HUB_REPO, "sha": commit, "siblings": siblings }).to_string().into_response()
}

async fn file(
    State(inside): Shared,
    Path((owner, name, commit, file)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let mut inside = inside.lock().expect("nobody panicked with it");
    if let Some(answer) = inside.meet(&headers, &format!("{owner}/{name}")) {
        return answer;
    }
    inside.file_requests += 1;
    if let Some(elsewhere) = inside.redirect.as_ref().filter(|_| is_lfs(&file)) {
        return (StatusCode::FOUND, [(header::LOCATION, format!("{elsewhere}/{file}"))]).into_response();
    }
    let Some(mut content) = inside.commits.get(&commit).and_then(|files| files.get(&file)).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers.get(header::RANGE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    inside.ranges.entry(file.clone()).or_default().push(range.clone().unwrap_or_default());
    let first: Option<usize> =
        range.map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("a number"));
    let fault = inside.faults.get_mut(&file).and_then(VecDeque::pop_front);
    match fault {
        Some(HubFault::Status(status)) => {
            return StatusCode::from_u16(status).expect("a status").into_response();
        }
        Some(HubFault::RetryAfter(seconds)) => {
            return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds.to_string())]).into_response();
        }
        Some(HubFault::Flip) => content[0] ^= 1,
        Some(HubFault::Longer) => content.push(0),
        _ => {}
    }
    let (status, rest) = match first.filter(|_| !matches!(fault, Some(HubFault::IgnoreRange))) {
        Some(first) => (StatusCode::PARTIAL_CONTENT, content.split_off(first)),
        None => (StatusCode::OK, content),
    };
    let length = [(header::CONTENT_LENGTH, rest.len().to_string())];
    let body = match fault {
        Some(HubFault::BreakOff(sent)) => {
            let sent = Bytes::from(rest).slice(..sent);
            // What was sent arrives before the end does.
            let end = futures::stream::once(async {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                Err(std::io::Error::other("broken off on purpose"))
            });
            Body::from_stream(futures::stream::iter([Ok(sent)]).chain(end))
        }
        _ => Body::from(rest),
    };
    (status, length, body).into_response()
}
