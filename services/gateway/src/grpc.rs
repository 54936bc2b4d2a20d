//! InferenceService on the wire: parse, call, convert, return.

use std::collections::BTreeMap;
use std::sync::Arc;

use tailor_engine::Event;
use tailor_pb::inference as pb;
use tailor_pb::inference::inference_service_server::InferenceService;
use tailor_pb::{common, registry};
use tailor_serverkit::status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::answer::{self, Answer};
use crate::error::{Error, Result};
use crate::models::{Model, Models};

/// Chunks on their way to one reader.
const STREAM_BUFFER: usize = 32;

pub struct Api {
    models: Arc<Models>,
}

impl Api {
    pub fn new(models: Arc<Models>) -> Self {
        Self { models }
    }

    async fn begin(&self, request: &pb::GenerateRequest) -> Result<(Model, Answer)> {
        let model = self.models.find(&request.base, &request.adapter).await?;
        let answer = answer::generate(&model, request).await?;
        Ok((model, answer))
    }
}

#[tonic::async_trait]
impl InferenceService for Api {
    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<pb::GenerateResponse>, Status> {
        let (model, answer) = self.begin(&request.into_inner()).await.map_err(|error| status(&error))?;
        let (pieces, mut text) = mpsc::channel::<String>(STREAM_BUFFER);
        let collect = async {
            let mut whole = String::new();
            while let Some(piece) = text.recv().await {
                whole.push_str(&piece);
            }
            whole
        };
        let (end, text) = tokio::join!(pump(&model, answer, pieces), collect);
        let end = end.map_err(|error| status(&error))?;
        Ok(Response::new(pb::GenerateResponse { text, ..end }))
    }

    type GenerateStreamStream = ReceiverStream<Result<pb::GenerateChunk, Status>>;

    async fn generate_stream(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (model, answer) = self.begin(&request.into_inner()).await.map_err(|error| status(&error))?;
        let (chunks, stream) = mpsc::channel(STREAM_BUFFER);
        tokio::spawn(async move {
            let (pieces, mut text) = mpsc::channel(STREAM_BUFFER);
            let forward = async {
                while let Some(text) = text.recv().await {
                    // A reader that is gone drops `text`, and with it the work.
                    if chunks.send(Ok(pb::GenerateChunk { text, end: None })).await.is_err() {
                        return;
                    }
                }
            };
            let (end, ()) = tokio::join!(pump(&model, answer, pieces), forward);
            let last = match end {
                Ok(end) => Ok(pb::GenerateChunk { text: String::new(), end: Some(end) }),
                Err(error) => Err(status(&error)),
            };
            let _ = chunks.send(last).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn score(&self, request: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        let request = request.into_inner();
        let scored = async {
            let model = self.models.find(&request.base, &request.adapter).await?;
            let tokens = answer::score(&model, &request).await?;
            Ok::<_, Error>(pb::ScoreResponse {
                tokens,
                adapter_digest: model.adapter.as_ref().map(|v| v.digest.to_string()).unwrap_or_default(),
                adapter_version: model.adapter.as_ref().map_or(0, |v| v.version.0),
                base_fingerprint: model.base.manifest.fingerprint.to_string(),
            })
        };
        Ok(Response::new(scored.await.map_err(|error| status(&error))?))
    }

    async fn list_models(&self, _: Request<pb::ListModelsRequest>) -> Result<Response<pb::ListModelsResponse>, Status> {
        let models = list(&self.models).await.map_err(|error| status(&error))?;
        Ok(Response::new(pb::ListModelsResponse { models }))
    }
}

/// Turns tokens into text as they come; returns the figures of the whole answer, its text left out.
async fn pump(model: &Model, mut answer: Answer, pieces: mpsc::Sender<String>) -> Result<pb::GenerateResponse> {
    let mut decoder = model.base.tokenizer.stream(true);
    let mut completion_tokens = 0;
    let mut finish_reason = "stop";
    while let Some(event) = answer.events.recv().await {
        match event? {
            Event::Token { id } => {
                completion_tokens += 1;
                let piece = decoder.push(id)?;
                if !piece.is_empty() && pieces.send(piece).await.is_err() {
                    break;
                }
            }
            Event::End { reason } => finish_reason = reason.as_str(),
        }
    }
    let rest = decoder.finish()?;
    if !rest.is_empty() {
        let _ = pieces.send(rest).await;
    }
    Ok(pb::GenerateResponse {
        text: String::new(),
        finish_reason: finish_reason.into(),
        prompt_tokens: answer.prompt_tokens,
        completion_tokens,
        adapter_digest: model.adapter.as_ref().map(|v| v.digest.to_string()).unwrap_or_default(),
        adapter_version: model.adapter.as_ref().map_or(0, |v| v.version.0),
        base_fingerprint: model.base.manifest.fingerprint.to_string(),
    })
}

/// Every base, and of every adapter the versions that have a name: an alias, or being the newest.
async fn list(models: &Models) -> Result<Vec<pb::Model>> {
    let mut client = models.registry();
    let mut listed = Vec::new();
    let mut token = String::new();
    loop {
        let page = Some(common::Page { size: 0, token });
        let answer = client.list_bases(registry::ListBasesRequest { page }).await;
        let answer = answer.map_err(Error::service("registry"))?.into_inner();
        listed.extend(answer.bases.into_iter().map(|base| pb::Model {
            id: base.name.clone(),
            base: base.name,
            digest: base.fingerprint,
            ..Default::default()
        }));
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    loop {
        let page = Some(common::Page { size: 0, token });
        let answer = client.list_adapters(registry::ListAdaptersRequest { page }).await;
        let answer = answer.map_err(Error::service("registry"))?.into_inner();
        for adapter in answer.adapters {
            let mut versions = BTreeMap::from([(adapter.latest_version, Vec::new())]);
            for (alias, version) in adapter.aliases {
                versions.entry(version).or_insert_with(Vec::new).push(alias);
            }
            for (version, mut aliases) in versions {
                aliases.sort();
                let reference = format!("{}@{version}", adapter.name);
                let found = models.resolve(&reference).await?;
                listed.push(pb::Model {
                    id: format!("{}:{reference}", found.base),
                    base: found.base,
                    adapter: adapter.name.clone(),
                    version,
                    aliases,
                    digest: found.digest,
                });
            }
        }
        token = answer.next_page_token;
        if token.is_empty() {
            return Ok(listed);
        }
    }
}
