//! EngineService on the wire: what edges ask of this process' engines.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tailor_constrain::Format;
use tailor_domain::{BaseName, Digest, Invalid, Version};
use tailor_engine::{Event, Sampling};
use tailor_pb::inference as pb;
use tailor_pb::inference::decode_event::What;
use tailor_pb::inference::decode_request::Format as Wire;
use tailor_pb::inference::engine_service_server::EngineService;
use tailor_serverkit::server::Hindrances;
use tailor_serverkit::status;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::answer::STREAM_BUFFER;
use crate::ask::json_schema;
use crate::caller::Caller;
use crate::device::{ScoreTokens, TokenJob, Tokens};
use crate::error::{Error, Result};
use crate::models::{Model, Models};

/// Pause between two reports: an edge knows no older state of an engine, but for what its own requests change.
const REPORT_EVERY: Duration = Duration::from_millis(100);

pub struct Api {
    models: Arc<Models>,
    hindrances: Hindrances,
    stop: CancellationToken,
}

impl Api {
    pub fn new(models: Arc<Models>, hindrances: Hindrances, stop: CancellationToken) -> Self {
        Self { models, hindrances, stop }
    }

    /// The model that an edge has chosen.
    async fn model(&self, target: Option<pb::Target>) -> Result<Model> {
        if self.stop.is_cancelled() {
            return Err(Error::Stopping);
        }
        let target = target.ok_or_else(|| Invalid::new("target", "it is missing"))?;
        let base = BaseName::try_new(target.base.clone())?;
        if target.digest.is_empty() {
            return self.models.base_of(&base, &Digest::try_new(target.base_fingerprint)?).await;
        }
        let version = self.models.routes().version_or_remembered(&target.adapter, Version(target.version)).await;
        let version = version.map_err(Error::service("registry"))?;
        if version.digest != target.digest {
            let problem = format!("version {} has digest {}, not {}", version.version, version.digest, target.digest);
            return Err(Invalid::new("target.digest", problem).into());
        }
        self.models.ready(base.as_str(), &version).await
    }

    async fn open(&self, request: pb::OpenBaseRequest) -> Result<Model> {
        let pb::OpenBaseRequest { base, fingerprint, if_room } = request;
        if if_room && !self.models.has_room_for(&BaseName::try_new(base.clone())?).await? {
            return Err(Error::NoFreeRoom(base));
        }
        self.model(Some(pb::Target { base, base_fingerprint: fingerprint, ..Default::default() })).await
    }

    async fn begin(&self, request: Request<pb::DecodeRequest>) -> Result<Tokens> {
        let deadline = Caller::of(request.metadata()).deadline;
        let mut request = request.into_inner();
        let model = self.model(request.target.take()).await?;
        model.generate(TokenJob { deadline, ..job(request)? }).await
    }

    async fn score(&self, request: Request<pb::ScoreTokensRequest>) -> Result<Vec<Option<f32>>> {
        let deadline = Caller::of(request.metadata()).deadline;
        let pb::ScoreTokensRequest { target, prompt_ids, token_ids, tenant } = request.into_inner();
        let model = self.model(target).await?;
        model.score(ScoreTokens { prompt_ids, token_ids, tenant, deadline }).await
    }
}

fn job(request: pb::DecodeRequest) -> Result<TokenJob> {
    let format = match request.format {
        None | Some(Wire::JsonObject(false)) => None,
        Some(Wire::JsonObject(true)) => Some(Format::JsonObject),
        Some(Wire::Regex(pattern)) => Some(Format::Regex(pattern)),
        Some(Wire::Lark(grammar)) => Some(Format::Lark(grammar)),
        Some(Wire::JsonSchema(schema)) => Some(json_schema(&schema)?),
    };
    Ok(TokenJob {
        prompt_ids: request.prompt_ids,
        max_new_tokens: request.max_new_tokens,
        sampling: Sampling {
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            min_p: request.min_p,
            repetition_penalty: request.repetition_penalty,
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            logit_bias: request.logit_bias.into_iter().map(|entry| (entry.id, entry.bias)).collect(),
            seed: request.seed,
        },
        top_logprobs: request.top_logprobs.map(|top| u8::try_from(top).unwrap_or(u8::MAX)),
        format,
        tenant: request.tenant,
        deadline: None,
        span: tracing::Span::current(),
    })
}

fn wire(event: Event) -> pb::DecodeEvent {
    let what = match event {
        Event::Token { id, logprobs } => {
            let (logprob, top) = match logprobs {
                None => (None, Vec::new()),
                Some(logprobs) => {
                    let top = logprobs.top.iter().map(|(id, logprob)| pb::TokenLogprob { id: *id, logprob: *logprob });
                    (Some(logprobs.chosen), top.collect())
                }
            };
            What::Token(pb::DecodedToken { id, logprob, top })
        }
        Event::Begun { cached_tokens } => What::Begun(pb::DecodeBegun { cached_tokens }),
        Event::End { reason } => What::End(pb::DecodeEnd { reason: reason.as_str().to_owned() }),
    };
    pb::DecodeEvent { what: Some(what) }
}

#[tonic::async_trait]
impl EngineService for Api {
    async fn open_base(&self, request: Request<pb::OpenBaseRequest>) -> Result<Response<pb::OpenedBase>, Status> {
        let model = self.open(request.into_inner()).await.map_err(|error| status(&error))?;
        Ok(Response::new(pb::OpenedBase { max_context: model.base.device.max_context() as u64 }))
    }

    type DecodeStream = ReceiverStream<Result<pb::DecodeEvent, Status>>;

    async fn decode(&self, request: Request<pb::DecodeRequest>) -> Result<Response<Self::DecodeStream>, Status> {
        let mut tokens = self.begin(request).await.map_err(|error| status(&error))?;
        let (events, stream) = mpsc::channel(STREAM_BUFFER);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = tokens.next() => next,
                    () = events.closed() => return,
                };
                let (event, is_last) = match next {
                    Ok(Some(event)) => {
                        let is_last = matches!(event, Event::End { .. });
                        (Ok(wire(event)), is_last)
                    }
                    Ok(None) => return,
                    Err(error) => (Err(status(&error)), true),
                };
                if events.send(event).await.is_err() || is_last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn score_tokens(
        &self,
        request: Request<pb::ScoreTokensRequest>,
    ) -> Result<Response<pb::ScoreTokensResponse>, Status> {
        let scores = self.score(request).await.map_err(|error| status(&error))?;
        let scores = scores.into_iter().map(|logprob| pb::TokenScore { logprob }).collect();
        Ok(Response::new(pb::ScoreTokensResponse { scores }))
    }

    type ReportStream = Pin<Box<dyn Stream<Item = Result<pb::EngineReport, Status>> + Send>>;

    async fn report(&self, _: Request<pb::ReportRequest>) -> Result<Response<Self::ReportStream>, Status> {
        let (reports, stream) = mpsc::channel(1);
        let (models, hindrances, stop) = (self.models.clone(), self.hindrances.clone(), self.stop.clone());
        tokio::spawn(async move {
            let mut told = BTreeMap::new();
            loop {
                let serving = hindrances.borrow().is_empty() && !stop.is_cancelled();
                let report = report(&models, serving, &mut told).await;
                if reports.send(Ok(report)).await.is_err() {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(REPORT_EVERY) => {}
                    () = reports.closed() => return,
                    // Once, so that edges know at once; the stream's end says the rest.
                    () = stop.cancelled(), if serving => {}
                }
                if !serving && stop.is_cancelled() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// What has changed since `told`, which becomes what is told.
async fn report(models: &Models, serving: bool, told: &mut BTreeMap<Digest, bool>) -> pb::EngineReport {
    let mut report = pb::EngineReport { serving, ..Default::default() };
    for base in models.bases.running().await {
        report.bases.push(base.manifest.fingerprint.to_string());
        let Some(usage) = base.device.engine().map(tailor_engine::Engine::usage) else { continue };
        report.running += usage.running as u64;
        report.waiting += usage.waiting as u64;
    }
    let mut now: BTreeMap<Digest, bool> = models.in_memory().into_iter().map(|digest| (digest, false)).collect();
    now.extend(models.resident().into_iter().map(|entry| (entry.version.digest, true)));
    for (digest, on_device) in &now {
        if told.get(digest) != Some(on_device) {
            let list = if *on_device { &mut report.on_device } else { &mut report.in_memory };
            list.push(digest.to_string());
        }
    }
    let gone = told.keys().filter(|digest| !now.contains_key(*digest));
    report.gone = gone.map(ToString::to_string).collect();
    *told = now;
    report
}
