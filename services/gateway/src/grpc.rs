//! InferenceService on the wire: parse, call, convert, return.

use std::collections::BTreeMap;
use std::sync::Arc;

use tailor_pb::inference as pb;
use tailor_pb::inference::inference_service_server::InferenceService;
use tailor_pb::{common, registry};
use tailor_serverkit::status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::answer::{self, Answer, SaidToken};
use crate::ask::Ask;
use crate::caller::Caller;
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

    async fn begin(&self, request: Request<pb::GenerateRequest>) -> Result<(Model, Answer)> {
        let caller = Caller::of(request.metadata());
        let request = request.into_inner();
        let (base, adapter) = (request.base.clone(), request.adapter.clone());
        let ask = Ask { tenant: caller.tenant, deadline: caller.deadline, ..request.try_into()? };
        let model = self.models.find(&base, &adapter).await?;
        let answer = answer::generate(&model, ask).await?;
        Ok((model, answer))
    }
}

#[tonic::async_trait]
impl InferenceService for Api {
    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<pb::GenerateResponse>, Status> {
        let generated = async {
            let (model, mut answer) = self.begin(request).await?;
            let (mut text, mut tokens) = (String::new(), Vec::new());
            while let Some(piece) = answer.next().await? {
                text.push_str(&piece.text);
                tokens.extend(piece.tokens.into_iter().map(wire));
            }
            Ok::<_, Error>(pb::GenerateResponse { text, tokens, ..figures(&model, &answer) })
        };
        Ok(Response::new(generated.await.map_err(|error| status(&error))?))
    }

    type GenerateStreamStream = ReceiverStream<Result<pb::GenerateChunk, Status>>;

    async fn generate_stream(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (model, mut answer) = self.begin(request).await.map_err(|error| status(&error))?;
        let (chunks, stream) = mpsc::channel(STREAM_BUFFER);
        tokio::spawn(async move {
            loop {
                // A reader that is gone ends the work, also while nothing is there to be sent.
                let next = tokio::select! {
                    next = answer.next() => next,
                    () = chunks.closed() => return,
                };
                let (chunk, over) = match next {
                    Ok(Some(piece)) => {
                        let tokens = piece.tokens.into_iter().map(wire).collect();
                        (Ok(pb::GenerateChunk { text: piece.text, end: None, tokens }), false)
                    }
                    Ok(None) => {
                        let end = Some(figures(&model, &answer));
                        (Ok(pb::GenerateChunk { end, ..Default::default() }), true)
                    }
                    Err(error) => (Err(status(&error)), true),
                };
                if chunks.send(chunk).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn score(&self, request: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let request = request.into_inner();
        let scored = async {
            let model = self.models.find(&request.base, &request.adapter).await?;
            let tokens = answer::score(&model, &request, &caller).await?;
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

fn wire(token: SaidToken) -> pb::GeneratedToken {
    let top =
        token.top.into_iter().map(|(id, text, logprob)| pb::ScoredToken { id, text, logprob: Some(logprob.into()) });
    pb::GeneratedToken { id: token.id, text: token.text, logprob: token.logprob.into(), top: top.collect() }
}

/// The figures of the whole answer, its text left out.
fn figures(model: &Model, answer: &Answer) -> pb::GenerateResponse {
    pb::GenerateResponse {
        text: String::new(),
        finish_reason: answer.finish_reason.into(),
        prompt_tokens: answer.prompt_tokens,
        completion_tokens: answer.completion_tokens,
        adapter_digest: model.adapter.as_ref().map(|v| v.digest.to_string()).unwrap_or_default(),
        adapter_version: model.adapter.as_ref().map_or(0, |v| v.version.0),
        base_fingerprint: model.base.manifest.fingerprint.to_string(),
        cached_tokens: answer.cached_tokens,
        tokens: Vec::new(),
    }
}

/// Every base, and of every adapter the versions that have a name: an alias, or being the newest.
pub async fn list(models: &Models) -> Result<Vec<pb::Model>> {
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
