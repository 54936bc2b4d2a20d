//! Policies and rollouts, both ways.

use tailor_domain::policy::{Approval, Gate, Gates, MetricGate, Policy};
use tailor_domain::rollout::{Caller, Golden, Limits, Rollout, RolloutState, Share};
use tailor_domain::{AdapterName, AliasName, Invalid, Version};

use crate::{inference, registry};

impl TryFrom<registry::Gates> for Gates {
    type Error = Invalid;

    fn try_from(gates: registry::Gates) -> Result<Self, Invalid> {
        let metric = |gate: registry::MetricGate| MetricGate {
            metric: gate.metric,
            at_least: gate.at_least,
            at_most: gate.at_most,
            max_drop: gate.max_drop,
            max_rise: gate.max_rise,
        };
        let gates = Self {
            metrics: gates.metrics.into_iter().map(metric).collect(),
            signature: gates.signature,
            approvals: gates.approvals,
            same_base: gates.same_base,
            serving: gates.serving.iter().map(|server| server.parse()).collect::<Result<_, _>>()?,
        };
        gates.validate()?;
        Ok(gates)
    }
}

impl From<&Gates> for registry::Gates {
    fn from(gates: &Gates) -> Self {
        let metric = |gate: &MetricGate| registry::MetricGate {
            metric: gate.metric.clone(),
            at_least: gate.at_least,
            at_most: gate.at_most,
            max_drop: gate.max_drop,
            max_rise: gate.max_rise,
        };
        Self {
            metrics: gates.metrics.iter().map(metric).collect(),
            signature: gates.signature,
            approvals: gates.approvals,
            same_base: gates.same_base,
            serving: gates.serving.iter().map(|server| server.as_str().to_owned()).collect(),
        }
    }
}

impl From<&Gate> for registry::Gate {
    fn from(gate: &Gate) -> Self {
        Self {
            kind: gate.kind.into(),
            subject: gate.subject.clone(),
            passed: gate.passed,
            figure: gate.figure.clone(),
            threshold: gate.threshold.clone(),
        }
    }
}

/// A policy in the words of the wire.
pub fn policy(adapter: &AdapterName, policy: &Policy) -> registry::Policy {
    registry::Policy {
        adapter: adapter.to_string(),
        alias: policy.alias.to_string(),
        sequence: policy.seq,
        gates: Some((&policy.gates).into()),
        who: policy.who.clone(),
        why: policy.why.clone(),
        at_ms: policy.at_ms,
    }
}

/// An approval in the words of the wire.
pub fn approval(adapter: &AdapterName, approval: &Approval) -> registry::Approval {
    registry::Approval {
        adapter: adapter.to_string(),
        version: approval.version.0,
        alias: approval.alias.as_ref().map(ToString::to_string).unwrap_or_default(),
        digest: approval.digest.to_string(),
        who: approval.who.clone(),
        why: approval.why.clone(),
        at_ms: approval.at_ms,
    }
}

/// The state that a rollout is in once its alias was moved by other means.
const SUPERSEDED: &str = "SUPERSEDED";

/// A rollout in the words of the wire, given the number of the alias' last move.
pub fn rollout(adapter: &AdapterName, rollout: &Rollout, alias_seq: u64) -> registry::Rollout {
    let superseded = rollout.state == RolloutState::Running && rollout.alias_seq != alias_seq;
    let limits = &rollout.limits;
    registry::Rollout {
        adapter: adapter.to_string(),
        alias: rollout.alias.to_string(),
        sequence: rollout.seq,
        id: rollout.id,
        state: if superseded { SUPERSEDED } else { rollout.state.as_str() }.into(),
        stable_version: rollout.stable.0,
        alias_sequence: rollout.alias_seq,
        canary_version: rollout.canary.0,
        percent: rollout.share.percent(),
        shadow_percent: rollout.shadow.percent(),
        sticky_by: rollout.sticky_by.as_str().into(),
        limits: Some(registry::RolloutLimits {
            min_requests: Some(limits.min_requests),
            max_error_rate: Some(limits.max_error_rate),
            max_latency_ratio: Some(limits.max_latency_ratio),
            max_quality_drop: Some(limits.max_quality_drop),
            max_shadow_distance: limits.max_shadow_distance,
        }),
        golden: rollout
            .golden
            .as_ref()
            .map(|golden| registry::GoldenPrompt { input: golden.input.clone(), expect: golden.expect.clone() }),
        who: rollout.who.clone(),
        why: rollout.why.clone(),
        at_ms: rollout.at_ms,
    }
}

/// Limits as they were, changed where the caller says so.
///
/// # Errors
/// One is outside its bounds.
pub fn limits(given: &registry::RolloutLimits, as_is: Limits) -> Result<Limits, Invalid> {
    let limits = Limits {
        min_requests: given.min_requests.unwrap_or(as_is.min_requests),
        max_error_rate: given.max_error_rate.unwrap_or(as_is.max_error_rate),
        max_latency_ratio: given.max_latency_ratio.unwrap_or(as_is.max_latency_ratio),
        max_quality_drop: given.max_quality_drop.unwrap_or(as_is.max_quality_drop),
        max_shadow_distance: given.max_shadow_distance.or(as_is.max_shadow_distance),
    };
    limits.validate()?;
    Ok(limits)
}

impl TryFrom<registry::GoldenPrompt> for Golden {
    type Error = Invalid;

    fn try_from(golden: registry::GoldenPrompt) -> Result<Self, Invalid> {
        Self::try_new(golden.input, golden.expect)
    }
}

/// What a gateway reads from the watch.
impl TryFrom<registry::Rollout> for Rollout {
    type Error = Invalid;

    fn try_from(rollout: registry::Rollout) -> Result<Self, Invalid> {
        let state = match rollout.state.as_str() {
            // Which of the two it is, the reader knows from the alias' own moves.
            "RUNNING" | SUPERSEDED => RolloutState::Running,
            "PROMOTING" => RolloutState::Promoting,
            "PROMOTED" => RolloutState::Promoted,
            "ABORTED" => RolloutState::Aborted,
            other => return Err(Invalid::new("rollout.state", format!("{other:?} is not known here"))),
        };
        Ok(Self {
            alias: AliasName::try_new(rollout.alias)?,
            seq: rollout.sequence,
            id: rollout.id,
            state,
            stable: Version(rollout.stable_version),
            alias_seq: rollout.alias_sequence,
            canary: Version(rollout.canary_version),
            share: Share::from_percent("percent", rollout.percent)?,
            shadow: Share::from_percent("shadow_percent", rollout.shadow_percent)?,
            sticky_by: rollout.sticky_by.parse()?,
            limits: limits(&rollout.limits.unwrap_or_default(), Limits::default())?,
            golden: rollout.golden.map(TryInto::try_into).transpose()?,
            who: rollout.who,
            why: rollout.why,
            at_ms: rollout.at_ms,
        })
    }
}

impl TryFrom<inference::Caller> for Caller {
    type Error = Invalid;

    fn try_from(caller: inference::Caller) -> Result<Self, Invalid> {
        Self::try_new(caller.tenant, caller.session, caller.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_survives_the_wire() {
        let adapter = AdapterName::try_new("grammar").expect("name");
        let sent = Rollout {
            alias: AliasName::try_new("production").expect("name"),
            seq: 4,
            id: 2,
            state: RolloutState::Running,
            stable: Version(1),
            alias_seq: 3,
            canary: Version(2),
            share: Share::from_percent("", 12.34).expect("share"),
            shadow: Share::from_percent("", 1.0).expect("share"),
            sticky_by: "user".parse().expect("known"),
            limits: Limits { max_shadow_distance: Some(0.3), ..Limits::default() },
            golden: Some(Golden { input: "He go.".into(), expect: "He goes.".into() }),
            who: "ops".into(),
            why: "better".into(),
            at_ms: 5,
        };
        let wire = rollout(&adapter, &sent, 3);
        assert_eq!(wire.state, "RUNNING");
        assert_eq!(Rollout::try_from(wire), Ok(sent.clone()));
        assert_eq!(rollout(&adapter, &sent, 4).state, "SUPERSEDED");
    }
}
