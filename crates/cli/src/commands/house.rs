//! `tailor adapter rm|undelete|keep|gc|usage`.

use serde_json::json;
use tailor_pb::registry as pb;

use crate::args::{Keep, VersionedName};
use crate::commands::adapter::{describe, who};
use crate::connect::Endpoints;
use crate::output::{Output, bytes, time};
use crate::table;

const DAY_MS: u64 = 86_400_000;

pub async fn rm(endpoints: &Endpoints, name: &VersionedName, why: &str, output: &Output) -> anyhow::Result<()> {
    let (adapter, version) = named(name)?;
    let request = pb::DeleteVersionRequest { adapter, version, who: who(), why: why.to_owned() };
    let deleted = endpoints.registry()?.delete_version(request).await?.into_inner();
    output.show(&describe(&deleted), || println!("deleted {name}; `tailor adapter undelete {name}` brings it back"))
}

pub async fn undelete(endpoints: &Endpoints, name: &VersionedName, why: &str, output: &Output) -> anyhow::Result<()> {
    let (adapter, version) = named(name)?;
    let request = pb::UndeleteVersionRequest { adapter, version, who: who(), why: why.to_owned() };
    let back = endpoints.registry()?.undelete_version(request).await?.into_inner();
    output.show(&describe(&back), || println!("{name} is back"))
}

fn named(name: &VersionedName) -> anyhow::Result<(String, u64)> {
    anyhow::ensure!(name.version > 0, "{name} names no version; write {name}@3");
    Ok((name.name.clone(), name.version))
}

pub async fn keep(endpoints: &Endpoints, keep: &Keep, output: &Output) -> anyhow::Result<()> {
    let mut client = endpoints.registry()?;
    let says_nothing = keep.last.is_none() && keep.days.is_none() && keep.tags.is_empty() && !keep.all;
    let retention = if says_nothing {
        client.get_retention(pb::GetRetentionRequest { adapter: keep.name.clone() }).await?.into_inner()
    } else {
        let rules = pb::RetentionRules {
            keep_last: keep.last.unwrap_or(0),
            keep_ms: keep.days.unwrap_or(0).saturating_mul(DAY_MS),
            keep_tags: keep.tags.clone(),
        };
        let rules = Some(rules).filter(|_| !keep.all);
        let request = pb::SetRetentionRequest { adapter: keep.name.clone(), rules, who: who(), why: keep.why.clone() };
        client.set_retention(request).await?.into_inner()
    };
    let rules = retention.rules.as_ref();
    let document = json!({
        "adapter": retention.adapter,
        "keep_last": rules.map(|rules| rules.keep_last),
        "keep_ms": rules.map(|rules| rules.keep_ms),
        "keep_tags": rules.map(|rules| &rules.keep_tags),
        "who": retention.who,
        "why": retention.why,
        "at_ms": retention.at_ms,
    });
    output.show(&document, || match rules {
        None => println!("{}: every version is kept", retention.adapter),
        Some(rules) => table::fields(&[
            ("adapter", retention.adapter.clone()),
            ("newest", some(rules.keep_last)),
            (
                "younger than",
                if rules.keep_ms > 0 { format!("{} days", rules.keep_ms / DAY_MS) } else { String::new() },
            ),
            ("tagged", rules.keep_tags.join(", ")),
            ("set by", retention.who.clone()),
            ("because", retention.why.clone()),
            ("at", time(retention.at_ms)),
        ]),
    })
}

fn some(count: u64) -> String {
    if count > 0 { count.to_string() } else { String::new() }
}

pub async fn gc(endpoints: &Endpoints, dry_run: bool, why: &str, output: &Output) -> anyhow::Result<()> {
    let request = pb::CollectRequest { dry_run, who: who(), why: why.to_owned() };
    let done = endpoints.registry()?.collect(request).await?.into_inner();
    let numbers = |all: &[pb::AdapterNumbers]| -> serde_json::Value {
        all.iter().map(|one| (one.adapter.clone(), json!(one.versions))).collect::<serde_json::Map<_, _>>().into()
    };
    let document = json!({
        "dry_run": dry_run,
        "expired": numbers(&done.expired),
        "purged": numbers(&done.purged),
        "deleted_blobs": done.deleted_blobs,
        "deleted_bytes": done.deleted_bytes,
        "kept_blobs": done.kept_blobs,
        "waiting_blobs": done.waiting_blobs,
        "waiting_bytes": done.waiting_bytes,
        "due_at_ms": done.due_at_ms,
    });
    output.show(&document, || {
        let would = if dry_run { "would be " } else { "" };
        for (what, all) in [("deleted by its rules", &done.expired), ("purged", &done.purged)] {
            for one in all {
                let versions: Vec<String> = one.versions.iter().map(ToString::to_string).collect();
                println!("{would}{what}: {} {}", one.adapter, versions.join(", "));
            }
        }
        println!("swept: {} blobs, {}", done.deleted_blobs, bytes(done.deleted_bytes));
        if done.waiting_blobs > 0 {
            let (blobs, size, at) = (done.waiting_blobs, bytes(done.waiting_bytes), time(done.due_at_ms));
            println!("{would}marked: {blobs} blobs, {size}; a run after {at} UTC sweeps them");
        }
    })
}

pub async fn usage(endpoints: &Endpoints, output: &Output) -> anyhow::Result<()> {
    let usage = endpoints.registry()?.get_usage(pb::GetUsageRequest {}).await?.into_inner();
    let adapters = usage.adapters.iter().map(|one| {
        json!({
            "adapter": one.adapter,
            "live": one.live,
            "deleted": one.deleted,
            "purged": one.purged,
            "size_bytes": one.size_bytes,
        })
    });
    let document = json!({
        "adapters": adapters.collect::<Vec<_>>(),
        "blobs": usage.blobs,
        "size_bytes": usage.size_bytes,
        "base_bytes": usage.base_bytes,
        "waiting_blobs": usage.waiting_blobs,
        "waiting_bytes": usage.waiting_bytes,
        "quota_versions": usage.quota_versions,
        "quota_bytes": usage.quota_bytes,
    });
    output.show(&document, || {
        let rows: Vec<_> = usage
            .adapters
            .iter()
            .map(|one| {
                let counts = [one.live, one.deleted, one.purged].map(|count| count.to_string());
                [vec![one.adapter.clone()], counts.to_vec(), vec![bytes(one.size_bytes)]].concat()
            })
            .collect();
        table::print(&["adapter", "live", "deleted", "purged", "weights"], &rows);
        println!();
        table::fields(&[
            ("store", format!("{} blobs, {}", usage.blobs, bytes(usage.size_bytes))),
            ("of bases", bytes(usage.base_bytes)),
            ("marked", format!("{} blobs, {}", usage.waiting_blobs, bytes(usage.waiting_bytes))),
            ("quota", quota(&usage)),
        ]);
    })
}

fn quota(usage: &pb::Usage) -> String {
    let versions = Some(usage.quota_versions).filter(|count| *count > 0).map(|count| format!("{count} versions"));
    let size = Some(usage.quota_bytes).filter(|count| *count > 0).map(bytes);
    versions.into_iter().chain(size).collect::<Vec<_>>().join(", ")
}
