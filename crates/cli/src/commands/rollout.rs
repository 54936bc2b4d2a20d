//! `tailor rollout set|status|abort|promote`.

use serde_json::{Value, json};
use tailor_pb::inference as pb;
use tailor_pb::registry;

use super::adapter::who;
use crate::args::{Rollout, SetRollout};
use crate::connect::Endpoints;
use crate::output::{Output, time};
use crate::table;

pub async fn run(endpoints: &Endpoints, command: &Rollout, output: &Output) -> anyhow::Result<()> {
    let mut client = endpoints.rollouts()?;
    let status = match command {
        Rollout::Set(set) => client.set_rollout(request(set)).await?,
        Rollout::Status { name, alias } => {
            client.get_rollout(registry::GetRolloutRequest { adapter: name.clone(), alias: alias.clone() }).await?
        }
        Rollout::Abort { name, alias, why } => {
            let request = registry::AbortRolloutRequest {
                adapter: name.clone(),
                alias: alias.clone(),
                who: who(),
                why: why.clone(),
                sequence: 0,
            };
            client.abort(request).await?
        }
        Rollout::Promote { name, alias, why } => {
            let request = registry::PromoteRolloutRequest {
                adapter: name.clone(),
                alias: alias.clone(),
                who: who(),
                why: why.clone(),
            };
            client.promote(request).await?
        }
    };
    show(&status.into_inner(), output)
}

fn request(set: &SetRollout) -> registry::SetRolloutRequest {
    let golden = set.golden.as_ref();
    registry::SetRolloutRequest {
        adapter: set.name.clone(),
        alias: set.alias.clone(),
        canary_version: set.canary,
        percent: set.percent,
        shadow_percent: set.shadow_percent,
        sticky_by: set.sticky_by.clone(),
        limits: Some(registry::RolloutLimits {
            min_requests: set.min_requests,
            max_error_rate: set.max_error_rate,
            max_latency_ratio: set.max_latency_ratio,
            max_quality_drop: set.max_quality_drop,
            max_shadow_distance: set.max_shadow_distance,
        }),
        golden: golden.map(|input| registry::GoldenPrompt { input: input.clone(), expect: set.golden_expect.clone() }),
        who: who(),
        why: set.why.clone(),
    }
}

fn show(status: &pb::RolloutStatus, output: &Output) -> anyhow::Result<()> {
    let rollout = status.rollout.clone().unwrap_or_default();
    let (stable, canary) = (status.stable.unwrap_or_default(), status.canary.unwrap_or_default());
    let shadow = status.shadow.unwrap_or_default();
    let limits = rollout.limits.unwrap_or_default();
    let document = json!({
        "adapter": rollout.adapter,
        "alias": rollout.alias,
        "sequence": rollout.sequence,
        "id": rollout.id,
        "state": rollout.state,
        "stable_version": rollout.stable_version,
        "canary_version": rollout.canary_version,
        "percent": rollout.percent,
        "shadow_percent": rollout.shadow_percent,
        "sticky_by": rollout.sticky_by,
        "limits": {
            "min_requests": limits.min_requests,
            "max_error_rate": limits.max_error_rate,
            "max_latency_ratio": limits.max_latency_ratio,
            "max_quality_drop": limits.max_quality_drop,
            "max_shadow_distance": limits.max_shadow_distance,
        },
        "golden": rollout.golden.as_ref().map(|golden| json!({ "input": golden.input, "expect": golden.expect })),
        "who": rollout.who,
        "why": rollout.why,
        "at_ms": rollout.at_ms,
        "seen": {
            "stable": side(&stable),
            "canary": side(&canary),
            "shadow": {
                "compared": shadow.compared,
                "same": shadow.same,
                "mean_distance": shadow.mean_distance,
                "errors": shadow.errors,
                "skipped": shadow.skipped,
            },
        },
    });
    output.show(&document, || {
        let name = format!("{}@{}", rollout.adapter, rollout.alias);
        println!(
            "{name}: version {} over {}, {} % of the callers by {}, {}",
            rollout.canary_version, rollout.stable_version, rollout.percent, rollout.sticky_by, rollout.state
        );
        let why = if rollout.why.is_empty() { String::new() } else { format!(": {}", rollout.why) };
        println!("last changed by {} at {}{why}", rollout.who, time(rollout.at_ms));
        let row = |name: &str, version: u64, side: &pb::SideFigures| {
            let quality = match side.quality_reports {
                0 => String::new(),
                reports => format!("{:.3} ({reports})", side.quality_mean),
            };
            vec![
                name.to_owned(),
                version.to_string(),
                side.requests.to_string(),
                side.errors.to_string(),
                format!("{:.0}", side.p50_ms),
                format!("{:.0}", side.p95_ms),
                quality,
            ]
        };
        let rows = [row("stable", rollout.stable_version, &stable), row("canary", rollout.canary_version, &canary)];
        table::print(&["side", "version", "requests", "errors", "p50 ms", "p95 ms", "quality"], &rows);
        if shadow.compared + shadow.errors + shadow.skipped > 0 {
            let pb::ShadowFigures { compared, same, mean_distance, errors, skipped } = shadow;
            println!(
                "shadow: {compared} compared, {same} the same, {mean_distance:.3} apart on average, {errors} failed, {skipped} left out"
            );
        }
    })
}

fn side(side: &pb::SideFigures) -> Value {
    json!({
        "requests": side.requests,
        "errors": side.errors,
        "p50_ms": side.p50_ms,
        "p95_ms": side.p95_ms,
        "quality_reports": side.quality_reports,
        "quality_mean": side.quality_mean,
    })
}
