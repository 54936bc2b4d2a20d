//! RolloutRegistry on the wire.

use tailor_domain::rollout::{Share, StickyBy};
use tailor_domain::{AdapterName, AliasName, Invalid, Version};
use tailor_pb::convert;
use tailor_pb::registry::rollout_registry_server::RolloutRegistry;
use tailor_pb::registry::{AbortRolloutRequest, GetRolloutRequest, PromoteRolloutRequest, Rollout, SetRolloutRequest};
use tonic::Request;

use super::{Answer, answer};
use crate::aliases::Reason;
use crate::rollouts::{Current, Wanted};
use crate::{Registry, Result};

pub struct RolloutApi {
    registry: Registry,
}

impl RolloutApi {
    pub fn new(registry: Registry) -> Self {
        Self { registry }
    }
}

#[tonic::async_trait]
impl RolloutRegistry for RolloutApi {
    async fn set_rollout(&self, request: Request<SetRolloutRequest>) -> Answer<Rollout> {
        let outcome = async {
            let request = request.into_inner();
            let (adapter, alias) = names(&request.adapter, &request.alias)?;
            let wanted = wanted(request)?;
            Ok(wire(&adapter, &self.registry.set_rollout(&adapter, &alias, wanted).await?))
        };
        answer(outcome.await)
    }

    async fn get_rollout(&self, request: Request<GetRolloutRequest>) -> Answer<Rollout> {
        let outcome = async {
            let GetRolloutRequest { adapter, alias } = request.into_inner();
            let (adapter, alias) = names(&adapter, &alias)?;
            Ok(wire(&adapter, &self.registry.rollout(&adapter, &alias).await?))
        };
        answer(outcome.await)
    }

    async fn abort_rollout(&self, request: Request<AbortRolloutRequest>) -> Answer<Rollout> {
        let outcome = async {
            let AbortRolloutRequest { adapter, alias, who, why, sequence } = request.into_inner();
            let (adapter, alias) = names(&adapter, &alias)?;
            let only = Some(sequence).filter(|sequence| *sequence > 0);
            let reason = Reason::try_new(who, why)?;
            Ok(wire(&adapter, &self.registry.abort_rollout(&adapter, &alias, only, reason).await?))
        };
        answer(outcome.await)
    }

    async fn promote_rollout(&self, request: Request<PromoteRolloutRequest>) -> Answer<Rollout> {
        let outcome = async {
            let PromoteRolloutRequest { adapter, alias, who, why } = request.into_inner();
            let (adapter, alias) = names(&adapter, &alias)?;
            let reason = Reason::try_new(who, why)?;
            Ok(wire(&adapter, &self.registry.promote_rollout(&adapter, &alias, reason).await?))
        };
        answer(outcome.await)
    }
}

fn names(adapter: &str, alias: &str) -> Result<(AdapterName, AliasName), Invalid> {
    Ok((AdapterName::try_new(adapter)?, AliasName::try_new(alias)?))
}

fn wanted(request: SetRolloutRequest) -> Result<Wanted, Invalid> {
    let share = |percent| Share::from_percent("shadow_percent", percent);
    let sticky_by = match request.sticky_by.as_str() {
        "" => None,
        word => Some(word.parse::<StickyBy>()?),
    };
    Ok(Wanted {
        canary: Version(request.canary_version),
        share: Share::from_percent("percent", request.percent)?,
        shadow: request.shadow_percent.map(share).transpose()?,
        sticky_by,
        limits: request.limits.unwrap_or_default(),
        golden: request.golden.map(TryInto::try_into).transpose()?,
        reason: Reason::try_new(request.who, request.why)?,
    })
}

fn wire(adapter: &AdapterName, (rollout, alias_seq): &Current) -> Rollout {
    convert::rollout(adapter, rollout, *alias_seq)
}
