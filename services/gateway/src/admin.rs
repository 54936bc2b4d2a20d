//! AdapterAdmin on the wire: residency, apart from inference so that access can differ.

use std::sync::Arc;

use tailor_domain::Digest;
use tailor_pb::inference as pb;
use tailor_pb::inference::adapter_admin_server::AdapterAdmin;
use tailor_serverkit::status;
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::models::{AdapterVersion, Models};
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

fn wire(version: &AdapterVersion, base: &str) -> pb::ResidentAdapter {
    pb::ResidentAdapter {
        adapter: version.name.clone(),
        version: version.version.0,
        digest: version.digest.to_string(),
        base: base.to_owned(),
        size_bytes: version.size_bytes,
    }
}

#[tonic::async_trait]
impl AdapterAdmin for Api {
    async fn load(&self, request: Request<pb::LoadRequest>) -> Result<Response<pb::ResidentAdapter>, Status> {
        let reference = request.into_inner().adapter;
        let reference: tailor_domain::adapter::AdapterRef = reference.parse().map_err(|error| status(&error))?;
        let model = self.models.find("", &reference.to_string()).await.map_err(|error| status(&error))?;
        let base = model.base.manifest.name.to_string();
        match &model.adapter {
            Some(version) => Ok(Response::new(wire(version, &base))),
            None => Err(Status::internal("an adapter was asked for and none came")),
        }
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
        });
        let adapters = self.models.resident().await;
        let adapters = adapters.iter().map(|(version, base)| wire(version, base.as_str())).collect();
        Ok(Response::new(pb::ListResidentResponse { bases: bases.collect(), adapters }))
    }
}
