//! `tailor hub list|prune`: what `tailor base add` has fetched and keeps, gigabytes a model. No service is asked.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tailor_hub::{Cached, Error, RepoId, cached};

use crate::args::Hub;
use crate::connect::Endpoints;
use crate::output::{Output, bytes, time};
use crate::table;

const DAY_SECONDS: u64 = 24 * 3600;

pub fn run(endpoints: &Endpoints, command: &Hub, output: &Output) -> anyhow::Result<()> {
    let cache = endpoints.hub_cache();
    match command {
        Hub::List => list(&cache, output),
        Hub::Prune { models, unused_days } => prune(&cache, models, *unused_days, output),
    }
}

fn list(cache: &Path, output: &Output) -> anyhow::Result<()> {
    let all = cached(cache)?;
    output.show(&all.iter().map(describe).collect::<Vec<_>>(), || {
        let rows: Vec<_> = all
            .iter()
            .map(|snapshot| {
                vec![
                    snapshot.repo.clone(),
                    snapshot.revisions.join(", "),
                    short(&snapshot.commit),
                    bytes(snapshot.size_bytes),
                    time(used_at_ms(snapshot)),
                    if snapshot.is_complete { String::new() } else { "broke off; the next call goes on".to_owned() },
                ]
            })
            .collect();
        table::print(&["model", "revision", "commit", "size", "last used", ""], &rows);
        println!("{} in {}", total(&all), cache.display());
    })
}

fn prune(cache: &Path, models: &[String], unused_days: u64, output: &Output) -> anyhow::Result<()> {
    let models = models.iter().map(|model| RepoId::parse(model)).collect::<Result<Vec<_>, _>>()?;
    let all = cached(cache)?;
    if let Some(unknown) = models.iter().find(|model| !all.iter().any(|snapshot| snapshot.is_of(model))) {
        return Err(Error::NotCached { what: unknown.to_string(), cache: cache.to_owned() }.into());
    }
    let now = SystemTime::now();
    let goes = |snapshot: &Cached| match models.as_slice() {
        [] => is_unused(snapshot.used_at, unused_days, now),
        models => models.iter().any(|model| snapshot.is_of(model)),
    };
    let (mut removed, mut busy) = (Vec::new(), Vec::new());
    for snapshot in all.into_iter().filter(goes) {
        if snapshot.remove()? { removed.push(snapshot) } else { busy.push(snapshot) }
    }
    let described = |snapshots: &[Cached]| snapshots.iter().map(describe).collect::<Vec<_>>();
    output.show(&json!({ "removed": described(&removed), "being_fetched": described(&busy) }), || {
        for snapshot in &removed {
            println!("removed {} at {}, {}", snapshot.repo, short(&snapshot.commit), bytes(snapshot.size_bytes));
        }
        for snapshot in &busy {
            println!("{} at {} is being fetched and stays", snapshot.repo, short(&snapshot.commit));
        }
        println!("{} freed in {}", total(&removed), cache.display());
    })
}

/// A time in the future is that of another clock, and no sign of age.
fn is_unused(used_at: SystemTime, days: u64, now: SystemTime) -> bool {
    days == 0
        || now.duration_since(used_at).unwrap_or_default() >= Duration::from_secs(days.saturating_mul(DAY_SECONDS))
}

fn total(snapshots: &[Cached]) -> String {
    bytes(snapshots.iter().map(|snapshot| snapshot.size_bytes).sum())
}

fn short(commit: &str) -> String {
    commit.chars().take(12).collect()
}

fn used_at_ms(snapshot: &Cached) -> u64 {
    snapshot.used_at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn describe(snapshot: &Cached) -> Value {
    json!({
        "model": snapshot.repo,
        "revisions": snapshot.revisions,
        "commit": snapshot.commit,
        "size_bytes": snapshot.size_bytes,
        "used_at_ms": used_at_ms(snapshot),
        "complete": snapshot.is_complete,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn a_model_is_unused_after_its_days_and_with_no_days_at_once() {
        let now = UNIX_EPOCH + Duration::from_secs(100 * DAY_SECONDS);
        let ago = |days: u64| now - Duration::from_secs(days * DAY_SECONDS);
        assert!(is_unused(ago(30), 30, now) && !is_unused(ago(29), 30, now));
        assert!(is_unused(now, 0, now) && is_unused(now + Duration::from_secs(1), 0, now));
        assert!(!is_unused(now + Duration::from_secs(1), 1, now));
        assert!(!is_unused(ago(90), u64::MAX, now), "no overflow");
    }

    #[test]
    fn models_are_named_or_chosen_by_age_and_not_both() {
        let parse = |words: &[&str]| Cli::try_parse_from(["tailor", "hub", "prune"].iter().chain(words));
        assert!(parse(&[]).is_ok() && parse(&["google/mt5-small"]).is_ok() && parse(&["--unused-days", "7"]).is_ok());
        assert!(parse(&["google/mt5-small", "--unused-days", "7"]).is_err());
    }

    #[test]
    fn what_is_unknown_is_refused_and_an_empty_cache_is_no_error() {
        let cache = tempfile::tempdir().expect("a folder");
        let output = Output { json: true };
        list(cache.path(), &output).expect("nothing");
        prune(cache.path(), &[], 30, &output).expect("nothing");
        let unknown = prune(cache.path(), &["google/none".to_owned()], 30, &output).expect_err("unknown").to_string();
        assert!(unknown.contains("nothing of google/none is in") && unknown.contains("tailor hub list"), "{unknown}");
    }
}
