//! `tailor adapter policy set|show|check` and `tailor adapter approve`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tailor_pb::registry as pb;

use super::adapter::who;
use crate::args::{Policy, SetPolicy};
use crate::connect::Endpoints;
use crate::output::{Output, time};
use crate::table;

pub async fn run(endpoints: &Endpoints, command: &Policy, output: &Output) -> anyhow::Result<()> {
    match command {
        Policy::Set(set) => {
            let request = pb::SetPolicyRequest {
                adapter: set.name.clone(),
                alias: set.alias.clone(),
                gates: Some(gates(set)),
                who: who(),
                why: set.why.clone(),
            };
            show(&endpoints.registry()?.set_policy(request).await?.into_inner(), output)
        }
        Policy::Show { name, alias } => {
            let request = pb::GetPolicyRequest { adapter: name.clone(), alias: alias.clone() };
            show(&endpoints.registry()?.get_policy(request).await?.into_inner(), output)
        }
        Policy::Check { name, alias, version } => {
            let request = pb::CheckPolicyRequest { adapter: name.clone(), alias: alias.clone(), version: *version };
            let report = endpoints.registry()?.check_policy(request).await?.into_inner();
            check(&report, output)?;
            anyhow::ensure!(report.passed, "version {version} of adapter {name} does not pass the policy of {alias}");
            Ok(())
        }
    }
}

pub async fn approve(
    endpoints: &Endpoints,
    name: &str,
    version: u64,
    alias: &str,
    why: &str,
    output: &Output,
) -> anyhow::Result<()> {
    let request = pb::ApproveVersionRequest {
        adapter: name.to_owned(),
        version,
        alias: alias.to_owned(),
        who: who(),
        why: why.to_owned(),
    };
    let given = endpoints.registry()?.approve_version(request).await?.into_inner();
    let document = json!({
        "adapter": given.adapter,
        "version": given.version,
        "alias": given.alias,
        "digest": given.digest,
        "who": given.who,
        "why": given.why,
        "at_ms": given.at_ms,
    });
    output.show(&document, || {
        let alias = if given.alias.is_empty() { "every alias" } else { &given.alias };
        println!("{} approves {}@{} for {alias}", given.who, given.adapter, given.version);
    })
}

/// Bounds of one metric, from wherever on the command line they stand, are one gate.
fn gates(set: &SetPolicy) -> pb::Gates {
    let mut metrics: BTreeMap<&str, pb::MetricGate> = BTreeMap::new();
    type Place = fn(&mut pb::MetricGate) -> &mut Option<f64>;
    let given: [(&[(String, f64)], Place); 4] = [
        (&set.min, |gate| &mut gate.at_least),
        (&set.max, |gate| &mut gate.at_most),
        (&set.max_drop, |gate| &mut gate.max_drop),
        (&set.max_rise, |gate| &mut gate.max_rise),
    ];
    for (bounds, place) in given {
        for (metric, value) in bounds {
            let gate = metrics.entry(metric).or_default();
            gate.metric.clone_from(metric);
            *place(gate) = Some(*value);
        }
    }
    pb::Gates {
        metrics: metrics.into_values().collect(),
        signature: set.signature,
        approvals: set.approvals,
        same_base: set.same_base,
        serving: set.serving.clone(),
    }
}

fn show(policy: &pb::Policy, output: &Output) -> anyhow::Result<()> {
    let gates = policy.gates.clone().unwrap_or_default();
    let metrics: Vec<Value> = gates
        .metrics
        .iter()
        .map(|gate| {
            json!({
                "metric": gate.metric,
                "at_least": gate.at_least,
                "at_most": gate.at_most,
                "max_drop": gate.max_drop,
                "max_rise": gate.max_rise,
            })
        })
        .collect();
    let document = json!({
        "adapter": policy.adapter,
        "alias": policy.alias,
        "sequence": policy.sequence,
        "gates": {
            "metrics": metrics,
            "signature": gates.signature,
            "approvals": gates.approvals,
            "same_base": gates.same_base,
            "serving": gates.serving,
        },
        "who": policy.who,
        "why": policy.why,
        "at_ms": policy.at_ms,
    });
    output.show(&document, || {
        let demands = words(&gates);
        let name = format!("{}@{}", policy.adapter, policy.alias);
        if demands.is_empty() {
            println!("{name} demands nothing");
            return;
        }
        println!("{name} demands (policy {}, by {}, {}):", policy.sequence, policy.who, time(policy.at_ms));
        demands.iter().for_each(|demand| println!("  {demand}"));
    })
}

fn words(gates: &pb::Gates) -> Vec<String> {
    let mut words = Vec::new();
    for gate in &gates.metrics {
        let bounds = [
            ("at least", gate.at_least),
            ("at most", gate.at_most),
            ("not below the present version's by more than", gate.max_drop),
            ("not above the present version's by more than", gate.max_rise),
        ];
        let given = bounds.into_iter().filter_map(|(word, bound)| Some((word, bound?)));
        words.extend(given.map(|(word, bound)| format!("{} {word} {bound}", gate.metric)));
    }
    if gates.signature {
        words.push("a signature that holds".into());
    }
    if gates.approvals > 0 {
        words.push(format!("{} approvals by others than the publisher", gates.approvals));
    }
    if gates.same_base {
        words.push("the present version's base".into());
    }
    words.extend(gates.serving.iter().map(|server| format!("able to be served by {server}")));
    words
}

fn check(report: &pb::CheckPolicyResponse, output: &Output) -> anyhow::Result<()> {
    let gates: Vec<Value> = report
        .gates
        .iter()
        .map(|gate| {
            json!({
                "kind": gate.kind,
                "subject": gate.subject,
                "passed": gate.passed,
                "figure": gate.figure,
                "threshold": gate.threshold,
            })
        })
        .collect();
    output.show(&json!({ "passed": report.passed, "gates": gates }), || {
        let rows: Vec<_> = report
            .gates
            .iter()
            .map(|gate| {
                let subject = if gate.subject.is_empty() { &gate.kind } else { &gate.subject };
                let verdict = if gate.passed { "passed" } else { "NOT PASSED" };
                vec![subject.clone(), verdict.into(), gate.figure.clone(), gate.threshold.clone()]
            })
            .collect();
        table::print(&["gate", "verdict", "figure", "demanded"], &rows);
    })
}
