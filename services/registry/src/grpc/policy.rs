//! Policies and approvals on the wire.

use tailor_domain::{AdapterName, AliasName, Version};
use tailor_pb::convert;
use tailor_pb::registry::{
    Approval, ApproveVersionRequest, CheckPolicyRequest, CheckPolicyResponse, GetPolicyRequest, Policy,
    SetPolicyRequest,
};

use crate::aliases::Reason;
use crate::{Registry, Result};

pub(super) async fn set(registry: &Registry, request: SetPolicyRequest) -> Result<Policy> {
    let SetPolicyRequest { adapter, alias, gates, who, why } = request;
    let (adapter, alias) = (AdapterName::try_new(adapter)?, AliasName::try_new(alias)?);
    let gates = gates.unwrap_or_default().try_into()?;
    let policy = registry.set_policy(&adapter, &alias, gates, Reason::try_new(who, why)?).await?;
    Ok(convert::policy(&adapter, &policy))
}

pub(super) async fn get(registry: &Registry, request: GetPolicyRequest) -> Result<Policy> {
    let GetPolicyRequest { adapter, alias } = request;
    let (adapter, alias) = (AdapterName::try_new(adapter)?, AliasName::try_new(alias)?);
    Ok(convert::policy(&adapter, &registry.policy(&adapter, &alias).await?))
}

pub(super) async fn check(registry: &Registry, request: CheckPolicyRequest) -> Result<CheckPolicyResponse> {
    let CheckPolicyRequest { adapter, alias, version } = request;
    let (adapter, alias) = (AdapterName::try_new(adapter)?, AliasName::try_new(alias)?);
    let gates = registry.check_policy(&adapter, &alias, Version(version)).await?;
    let passed = gates.iter().all(|gate| gate.passed);
    Ok(CheckPolicyResponse { passed, gates: gates.iter().map(Into::into).collect() })
}

pub(super) async fn approve(registry: &Registry, request: ApproveVersionRequest) -> Result<Approval> {
    let ApproveVersionRequest { adapter, version, alias, who, why } = request;
    let adapter = AdapterName::try_new(adapter)?;
    let alias = Some(alias).filter(|alias| !alias.is_empty()).map(AliasName::try_new).transpose()?;
    let approval = registry.approve(&adapter, Version(version), alias, Reason::try_new(who, why)?).await?;
    Ok(convert::approval(&adapter, &approval))
}
