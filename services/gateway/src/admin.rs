//! AdapterAdmin on the wire: residency, apart from inference so that access can differ.

use std::sync::Arc;

use tailor_domain::Digest;
use tailor_pb::inference as pb;
use tailor_pb::inference::adapter_admin_server::AdapterAdmin;
use tailor_serverkit::status;
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::models::Models;
use crate::resident::Entry;
use crate::rollout::Rollouts;

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
        let reference: tailor_domain::adapter::AdapterRef = reference.parse().map_err(|error| status(&error))?;
        let model = self.models.find("", &reference.to_string()).await.map_err(|error| status(&error))?;
        let digest = model.adapter.as_ref().map(|version| version.digest.clone());
        let resident = self.models.resident();
        match resident.iter().find(|entry| Some(&entry.version.digest) == digest.as_ref()) {
            Some(entry) => Ok(Response::new(wire(entry))),
            None => Err(Status::internal("an adapter was asked for and none came")),
        }
    }

    async fn pin(&self, request: Request<pb::PinRequest>) -> Result<Response<pb::ResidentAdapter>, Status> {
        let pb::PinRequest { digest, pinned } = request.into_inner();
        let digest = Digest::try_new(digest).map_err(|error| status(&error))?;
        let entry = self.models.pin(&digest, pinned).map_err(|error| status(&error))?;
        Ok(Response::new(wire(&entry)))
    }

    async fn unload(&self, request: Request<pb::UnloadRequest>) -> Result<Response<pb::UnloadResponse>, Status> {
        let digest = Digest::try_new(request.into_inner().digest).map_err(|error| status(&error))?;
        if let Some(why) = self.rollouts.holds(&digest) {
            return Err(status(&Error::Held { digest: digest.to_string(), why }));
        }
        self.models.unload(&digest).await.map_err(|error| status(&error))?;
        Ok(Response::new(pb::UnloadResponse {}))
    }

    async fn list_resident(
        &self,
        _: Request<pb::ListResidentRequest>,
    ) -> Result<Response<pb::ListResidentResponse>, Status> {
        let bases = self.models.bases.running().await;
        let bases = bases.iter().map(|base| pb::ResidentBase {
            base: base.manifest.name.to_string(),
            fingerprint: base.manifest.fingerprint.to_string(),
            size_bytes: base.engine.info().resident_bytes,
            usage: Some(wire_usage(base.engine.usage())),
        });
        let adapters = self.models.resident().iter().map(wire).collect();
        Ok(Response::new(pb::ListResidentResponse { bases: bases.collect(), adapters }))
    }
}
