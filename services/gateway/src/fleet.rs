//! The engines that an edge sends its requests to.
//!
//! ```text
//! report ──▶ Member  (what each engine says it holds and does, several times a second)
//! choice ──▶ an order of engines for a request: where its adapter is, unless that one has more to do than the others
//! remote ──▶ one answer: goes to the first engine that takes it, and on to the next while nobody has heard a token of it
//! ```

mod choice;
mod member;
mod remote;
mod report;

use std::sync::Arc;
use std::time::Instant;

use tailor_domain::{BaseName, Digest};
use tailor_pb::inference as pb;
use tailor_pb::inference::adapter_admin_client::AdapterAdminClient;
use tailor_serverkit::Settings;
use tailor_serverkit::client::Client;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use self::member::Member;
pub use self::remote::Remote;
use crate::device::{ScoreTokens, TokenJob};
use crate::error::{Error, Result};

pub struct Fleet {
    members: Vec<Arc<Member>>,
}

impl Fleet {
    /// # Errors
    /// An address that cannot be one.
    pub fn new(settings: &Settings) -> Result<Self> {
        let token = settings.auth.token.as_deref();
        let members = settings.gateway.engine_urls().map(|url| Ok(Arc::new(Member::new(url, token)?)));
        Ok(Self { members: members.collect::<Result<_>>()? })
    }

    /// Follows what all engines report, until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let follow = self.members.iter().map(|member| report::follow(member.clone(), stop.clone()));
        futures::future::join_all(follow).await;
    }

    /// Why no request can be answered; None while some engine takes them.
    pub fn hindrance(&self) -> Option<String> {
        if self.members.iter().any(|member| member.view().serving) {
            return None;
        }
        let names: Vec<_> = self.members.iter().map(|member| member.url.as_str()).collect();
        Some(format!("no engine serves: {}", names.join(", ")))
    }

    /// Engines in the order in which they are to be tried for an adapter (or none) on a base, by its fingerprint.
    fn order(&self, base: &str, digest: &str) -> Vec<Arc<Member>> {
        let views: Vec<_> = self.members.iter().map(|member| member.look(base, digest)).collect();
        choice::order(digest, &views).into_iter().map(|at| self.members[at].clone()).collect()
    }

    /// Makes a base ready on an engine, and then on all that serve and have room for it: its requests may go to any of them, and
    /// the first to come to each should not wait for that.
    ///
    /// # Errors
    /// No engine can; what the last one said.
    pub async fn open(&self, base: &BaseName, fingerprint: &Digest) -> Result<pb::OpenedBase> {
        let (base, fingerprint) = (base.to_string(), fingerprint.to_string());
        let request = pb::OpenBaseRequest { base, fingerprint: fingerprint.clone(), if_room: false };
        let ask = |member: Arc<Member>| {
            let request = request.clone();
            async move { member.engine().open_base(request).await }
        };
        let opened = self.first((&fingerprint, ""), None, ask).await?;
        for member in self.members.iter().filter(|member| member.view().serving) {
            let (member, request) = (member.clone(), pb::OpenBaseRequest { if_room: true, ..request.clone() });
            tokio::spawn(async move {
                if let Err(status) = member.engine().open_base(request).await {
                    tracing::info!(engine = member.url, problem = status.message(), "a base is not open everywhere");
                }
            });
        }
        Ok(opened)
    }

    /// Starts an answer.
    ///
    /// # Errors
    /// What is wrong with the request, or [`Error::NoEngine`].
    pub async fn decode(self: Arc<Self>, target: pb::Target, job: TokenJob) -> Result<Remote> {
        Remote::begin(self, target, job).await
    }

    /// # Errors
    /// As for [`Self::decode`].
    pub async fn score(&self, target: pb::Target, job: ScoreTokens) -> Result<Vec<Option<f32>>> {
        let (base, digest) = (target.base_fingerprint.clone(), target.digest.clone());
        let ScoreTokens { prompt_ids, token_ids, tenant, deadline } = job;
        let request = pb::ScoreTokensRequest { target: Some(target), prompt_ids, token_ids, tenant };
        let ask = |member: Arc<Member>| {
            let mut request = Request::new(request.clone());
            if let Some(deadline) = deadline {
                request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            }
            async move { member.engine().score_tokens(request).await }
        };
        let scored = self.first((&base, &digest), deadline, ask).await?;
        Ok(scored.scores.into_iter().map(|score| score.logprob).collect())
    }

    /// Makes an adapter resident on the engine that its requests go to.
    ///
    /// # Errors
    /// It cannot be used; no engine answers.
    pub async fn load(&self, reference: &str, digest: &str) -> Result<pb::ResidentAdapter> {
        let request = pb::LoadRequest { adapter: reference.to_owned() };
        let ask = |member: Arc<Member>| {
            let request = request.clone();
            async move { member.admin().load(request).await }
        };
        self.first(("", digest), None, ask).await
    }

    /// The first answer in a request's order of engines: on to the next one where an engine is gone or full, and there is time.
    async fn first<T, F>(
        &self,
        (base, digest): (&str, &str),
        deadline: Option<Instant>,
        ask: impl Fn(Arc<Member>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut last = None;
        let mut order = self.order(base, digest).into_iter();
        // However it comes to be known, by the engine's word or the transport's own clock, it is the same to the caller.
        let is_late = || deadline.is_some_and(|deadline| deadline <= Instant::now());
        while let Some(member) = order.next() {
            if is_late() {
                return Err(tailor_engine::Error::Deadline.into());
            }
            let _at_work = member.begin();
            let answer = ask(member.clone());
            match member.or_silence(order.len() > 0, answer).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_late() || status.code() == Code::DeadlineExceeded => {
                    return Err(tailor_engine::Error::Deadline.into());
                }
                Err(status) if may_go_elsewhere(&status) => last = Some(status),
                Err(status) => return Err(Error::service("engine")(status)),
            }
        }
        Err(self.nowhere(last))
    }

    /// Asks every engine that answers; what each said.
    ///
    /// # Errors
    /// None answers.
    pub async fn each<T, F>(&self, ask: impl Fn(AdapterAdminClient<Client>) -> F) -> Result<Vec<Result<T, Status>>>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        // What one that hangs holds is not waited for, where others can say what they hold.
        let several = self.members.len() > 1;
        let said = self.members.iter().map(|member| member.or_silence(several, ask(member.admin())));
        let said = futures::future::join_all(said).await;
        let said: Vec<_> = said.into_iter().map(|said| said.map(tonic::Response::into_inner)).collect();
        if said.iter().all(|said| said.as_ref().is_err_and(may_go_elsewhere)) {
            return Err(self.nowhere(said.into_iter().find_map(Result::err)));
        }
        Ok(said.into_iter().filter(|said| !said.as_ref().is_err_and(may_go_elsewhere)).collect())
    }

    /// Nobody took a request. Where engines are full, what the last of them said of it, when to come again included.
    fn nowhere(&self, last: Option<Status>) -> Error {
        match last {
            Some(status) if status.code() == Code::ResourceExhausted => Error::service("engine")(status),
            last => Error::NoEngine {
                engines: self.members.len(),
                problem: last.map_or_else(|| "none serves".to_owned(), |status| status.message().to_owned()),
            },
        }
    }
}

/// Whether another engine might do what this one did not: it is away, about to stop, or full.
fn may_go_elsewhere(status: &Status) -> bool {
    // What the transport says has a source; what an engine says has none.
    let by_transport = std::error::Error::source(status).is_some();
    by_transport || matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
}
