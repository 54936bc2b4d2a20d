//! AdapterAdmin on the wire: residency, apart from inference so that access can differ.

use std::sync::Arc;

use tailor_domain::{AdapterRef, Digest};
use tailor_pb::inference as pb;
use tailor_pb::inference::adapter_admin_client::AdapterAdminClient;
use tailor_pb::inference::adapter_admin_server::AdapterAdmin;
use tailor_serverkit::client::Client;
use tailor_serverkit::status;
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::models::Models;
use crate::resident::Entry;
use crate::rollout::Rollouts;

/// As an edge asks one of its engines.
type Engine = AdapterAdminClient<Client>;

pub struct Api {
    models: Arc<Models>,
    rollouts: Arc<Rollouts>,
}

impl Api {
    pub fn new(models: Arc<Models>, rollouts: Arc<Rollouts>) -> Self {
        Self { models, rollouts }
    }
}

fn wire(entry: &Entry) -> pb::ResidentAdapter {
    pb::ResidentAdapter {
        adapter: entry.version.name.clone(),
        version: entry.version.version.0,
        digest: entry.version.digest.to_string(),
        base: entry.base.to_string(),
        size_bytes: entry.size_bytes,
        pinned: entry.pinned,
    }
}

fn wire_usage(usage: tailor_engine::Usage) -> pb::EngineUsage {
    pb::EngineUsage {
        running: usage.running as u64,
        waiting: usage.waiting as u64,
        waiting_tokens: usage.waiting_tokens as u64,
        kv_blocks: usage.kv_blocks as u64,
        kv_blocks_held: usage.kv_blocks_held as u64,
        steps: usage.steps,
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens,
        made_tokens: usage.made_tokens,
    }
}

#[tonic::async_trait]
impl AdapterAdmin for Api {
    async fn load(&self, request: Request<pb::LoadRequest>) -> Result<Response<pb::ResidentAdapter>, Status> {
        let reference = request.into_inner().adapter;
        let reference: AdapterRef = reference.parse().map_err(|error| status(&error))?;
        if let Some(fleet) = self.models.fleet() {
            // What the name means is said once, here.
            let found = self.models.resolve(&reference.to_string()).await.map_err(|error| status(&error))?;
            let version = format!("{}@{}", found.adapter, found.version);
            let loaded = fleet.load(&version, &found.digest).await;
            return loaded.map(Response::new).map_err(|error| status(&error));
        }
        let entry = self.models.make_ready(&reference).await.map_err(|error| status(&error))?;
        Ok(Response::new(wire(&entry)))
    }

    async fn pin(&self, request: Request<pb::PinRequest>) -> Result<Response<pb::ResidentAdapter>, Status> {
        let request = request.into_inner();
        let digest = Digest::try_new(request.digest.clone()).map_err(|error| status(&error))?;
        if let Some(fleet) = self.models.fleet() {
            let ask = |mut engine: Engine| {
                let request = request.clone();
                async move { engine.pin(request).await }
            };
            let said = fleet.each(ask).await;
            return any(said.map_err(|error| status(&error))?);
        }
        let entry = self.models.pin(&digest, request.pinned).map_err(|error| status(&error))?;
        Ok(Response::new(wire(&entry)))
    }

    async fn unload(&self, request: Request<pb::UnloadRequest>) -> Result<Response<pb::UnloadResponse>, Status> {
        let request = request.into_inner();
        let digest = Digest::try_new(request.digest.clone()).map_err(|error| status(&error))?;
        if let Some(why) = self.rollouts.holds(&digest) {
            return Err(status(&Error::Held { digest: digest.to_string(), why }));
        }
        if let Some(fleet) = self.models.fleet() {
            let ask = |mut engine: Engine| {
                let request = request.clone();
                async move { engine.unload(request).await }
            };
            let said = fleet.each(ask).await;
            return any(said.map_err(|error| status(&error))?);
        }
        // A caller that goes away in the meantime must not leave it half out.
        let models = self.models.clone();
        let unloaded = tokio::spawn(async move { models.unload(&digest).await }).await;
        unloaded.unwrap_or(Err(Error::Cut)).map_err(|error| status(&error))?;
        Ok(Response::new(pb::UnloadResponse {}))
    }

    async fn list_resident(
        &self,
        _: Request<pb::ListResidentRequest>,
    ) -> Result<Response<pb::ListResidentResponse>, Status> {
        if let Some(fleet) = self.models.fleet() {
            let ask = |mut engine: Engine| async move { engine.list_resident(pb::ListResidentRequest {}).await };
            let said = fleet.each(ask).await;
            let mut all = pb::ListResidentResponse::default();
            for said in said.map_err(|error| status(&error))? {
                let said = said?;
                all.bases.extend(said.bases);
                all.adapters.extend(said.adapters);
                all.tiers.extend(said.tiers);
            }
            return Ok(Response::new(all));
        }
        let bases = self.models.bases.running().await;
        let bases = bases.iter().filter_map(|base| {
            let engine = base.device.engine()?;
            Some(pb::ResidentBase {
                base: base.manifest.name.to_string(),
                fingerprint: base.manifest.fingerprint.to_string(),
                size_bytes: engine.info().resident_bytes,
                usage: Some(wire_usage(engine.usage())),
            })
        });
        let adapters = self.models.resident().iter().map(wire).collect();
        let tiers =
            self.models.shelves().map(|(tier, count, size_bytes)| pb::Tier { tier: tier.into(), count, size_bytes });
        Ok(Response::new(pb::ListResidentResponse { bases: bases.collect(), adapters, tiers: tiers.into() }))
    }
}

/// What one of several engines has done; where none has, why.
fn any<T>(said: Vec<Result<T, Status>>) -> Result<Response<T>, Status> {
    let mut refused = None;
    let mut done = None;
    for said in said {
        match said {
            Ok(answer) => done = Some(answer),
            Err(status) => refused = Some(status),
        }
    }
    match (done, refused) {
        (Some(answer), _) => Ok(Response::new(answer)),
        (None, refused) => Err(refused.unwrap_or_else(|| Status::unavailable("no engine answers"))),
    }
}
