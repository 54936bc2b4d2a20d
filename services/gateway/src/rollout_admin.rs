//! RolloutAdmin on the wire: a version is tried here, then the registry decides; what it says is passed on as it is, gates
//! and all.

use std::sync::Arc;

use tailor_domain::rollout::Golden;
use tailor_domain::{AdapterName, AliasName, Invalid, Version};
use tailor_pb::inference as pb;
use tailor_pb::inference::rollout_admin_server::RolloutAdmin;
use tailor_pb::registry::{AbortRolloutRequest, GetRolloutRequest, PromoteRolloutRequest, Rollout, SetRolloutRequest};
use tailor_serverkit::status;
use tonic::{Code, Request, Response, Status};

use crate::rollout::{Rollouts, Seen};
use crate::routes::Routes;

pub struct Api {
    rollouts: Arc<Rollouts>,
}

impl Api {
    pub fn new(rollouts: Arc<Rollouts>) -> Self {
        Self { rollouts }
    }

    fn routes(&self) -> &Routes {
        self.rollouts.models().routes()
    }

    /// What the registry has decided, once it is in force here.
    async fn decided(&self, rollout: Rollout) -> Result<Response<pb::RolloutStatus>, Status> {
        let (adapter, alias) = names(&rollout.adapter, &rollout.alias)?;
        self.routes().reached(&adapter, &alias, rollout.sequence).await;
        Ok(self.shown(rollout))
    }

    fn shown(&self, rollout: Rollout) -> Response<pb::RolloutStatus> {
        let seen = self.rollouts.seen(&rollout.adapter, &rollout.alias, rollout.id).unwrap_or_default();
        Response::new(wire(rollout, &seen))
    }

    async fn get(&self, request: GetRolloutRequest) -> Result<Rollout, Status> {
        let mut rollouts = self.routes().rollouts();
        Ok(self.routes().answered(rollouts.get_rollout(request)).await?.into_inner())
    }

    /// What a version is to be asked: what is given, else what the running rollout asks.
    async fn golden(&self, request: &SetRolloutRequest) -> Result<Option<Golden>, Status> {
        if let Some(golden) = request.golden.clone() {
            return Ok(Some(golden.try_into().map_err(|error: Invalid| status(&error))?));
        }
        let get = GetRolloutRequest { adapter: request.adapter.clone(), alias: request.alias.clone() };
        let running = match self.get(get).await {
            Ok(rollout) => rollout,
            Err(error) if error.code() == Code::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if running.state != "RUNNING" || running.canary_version != request.canary_version {
            return Ok(None);
        }
        running.golden.map(TryInto::try_into).transpose().map_err(|error: Invalid| status(&error))
    }
}

#[tonic::async_trait]
impl RolloutAdmin for Api {
    async fn set_rollout(&self, request: Request<SetRolloutRequest>) -> Result<Response<pb::RolloutStatus>, Status> {
        let request = request.into_inner();
        names(&request.adapter, &request.alias)?;
        let canary = self.routes().version(&request.adapter, Version(request.canary_version)).await?;
        let golden = self.golden(&request).await?;
        self.rollouts.try_out(&canary, golden.as_ref()).await.map_err(|error| status(&error))?;
        let rollout = self.routes().rollouts().set_rollout(request).await?.into_inner();
        self.decided(rollout).await
    }

    async fn get_rollout(&self, request: Request<GetRolloutRequest>) -> Result<Response<pb::RolloutStatus>, Status> {
        let rollout = self.get(request.into_inner()).await?;
        Ok(self.shown(rollout))
    }

    async fn abort(&self, request: Request<AbortRolloutRequest>) -> Result<Response<pb::RolloutStatus>, Status> {
        let rollout = self.routes().rollouts().abort_rollout(request.into_inner()).await?.into_inner();
        self.decided(rollout).await
    }

    async fn promote(&self, request: Request<PromoteRolloutRequest>) -> Result<Response<pb::RolloutStatus>, Status> {
        let rollout = self.routes().rollouts().promote_rollout(request.into_inner()).await?.into_inner();
        self.decided(rollout).await
    }

    async fn route(&self, request: Request<pb::RouteRequest>) -> Result<Response<pb::RouteResponse>, Status> {
        let pb::RouteRequest { adapter, caller } = request.into_inner();
        let caller = caller.unwrap_or_default().try_into().map_err(|error: Invalid| status(&error))?;
        let (version, side, from_table) =
            self.rollouts.route(&adapter, &caller).await.map_err(|error| status(&error))?;
        Ok(Response::new(pb::RouteResponse {
            adapter: version.adapter,
            version: version.version,
            digest: version.digest,
            side: side.into(),
            from_table,
        }))
    }

    async fn report_quality(
        &self,
        request: Request<pb::ReportQualityRequest>,
    ) -> Result<Response<pb::ReportQualityResponse>, Status> {
        let pb::ReportQualityRequest { adapter_digest, score } = request.into_inner();
        if !(0.0..=1.0).contains(&score) {
            return Err(status(&Invalid::new("score", format!("{score} is outside 0 to 1"))));
        }
        self.rollouts.report_quality(&adapter_digest, score).map_err(|error| status(&error))?;
        Ok(Response::new(pb::ReportQualityResponse {}))
    }
}

fn names(adapter: &str, alias: &str) -> Result<(AdapterName, AliasName), Status> {
    let names = || Ok((AdapterName::try_new(adapter)?, AliasName::try_new(alias)?));
    names().map_err(|error: Invalid| status(&error))
}

fn wire(rollout: Rollout, seen: &Seen) -> pb::RolloutStatus {
    let side = |side: &crate::rollout::SeenSide| pb::SideFigures {
        requests: side.requests,
        errors: side.errors,
        p50_ms: side.p50.as_secs_f64() * 1000.0,
        p95_ms: side.p95.as_secs_f64() * 1000.0,
        quality_reports: side.reports,
        quality_mean: side.mean_quality,
    };
    pb::RolloutStatus {
        rollout: Some(rollout),
        stable: Some(side(&seen.stable)),
        canary: Some(side(&seen.canary)),
        shadow: Some(pb::ShadowFigures {
            compared: seen.compared,
            same: seen.same,
            mean_distance: seen.mean_distance,
            errors: seen.shadow_errors,
            skipped: seen.skipped,
        }),
    }
}
