//! `tailor adapter audit|verify`.

use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use tailor_domain::Digest;
use tailor_pb::registry as pb;

use crate::connect::Endpoints;
use crate::output::Output;

/// Writes the log, checking the chain on the way: what the registry says is not taken on trust.
pub async fn export(endpoints: &Endpoints, from: u64, file: Option<&Path>, output: &Output) -> anyhow::Result<()> {
    let request = pb::ExportAuditRequest { from_sequence: from };
    let mut entries = endpoints.registry()?.export_audit(request).await?.into_inner();
    let mut sink: Box<dyn Write> = match file {
        Some(path) => {
            Box::new(std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
        }
        None => Box::new(std::io::stdout()),
    };
    let (mut count, mut before): (u64, Option<String>) = (0, None);
    while let Some(entry) = entries.message().await? {
        let link: Value = serde_json::from_slice(&entry.record)
            .with_context(|| format!("entry {} is no JSON; run `tailor adapter verify`", entry.sequence))?;
        if let Some(before) = &before {
            let follows = link["prev"].as_str() == Some(before.as_str());
            anyhow::ensure!(
                follows,
                "entry {} does not follow the one before it; run `tailor adapter verify`",
                entry.sequence
            );
        }
        sink.write_all(&entry.record)?;
        sink.write_all(b"\n")?;
        before = Some(Digest::of(&entry.record).to_string());
        count += 1;
    }
    sink.flush()?;
    if let Some(path) = file {
        let document = json!({ "entries": count, "digest": before, "file": path });
        output.show(&document, || {
            println!("{count} entries in {}, the last is {}", path.display(), before.as_deref().unwrap_or("none"));
        })?;
    }
    Ok(())
}

pub async fn verify(endpoints: &Endpoints, output: &Output) -> anyhow::Result<()> {
    let seen = endpoints.registry()?.verify(pb::VerifyRequest {}).await?.into_inner();
    let document = json!({
        "links": seen.links,
        "records": seen.records,
        "blobs": seen.blobs,
        "made_up": seen.made_up,
        "problems": seen.problems,
    });
    output.show(&document, || {
        println!("{} entries of the audit log, {} records, {} blobs", seen.links, seen.records, seen.blobs);
        let mut problems: Vec<_> = seen.problems.iter().collect();
        problems.sort();
        problems.iter().for_each(|(key, problem)| println!("{key}: {problem}"));
    })?;
    anyhow::ensure!(seen.problems.is_empty(), "{} objects are not as they were written", seen.problems.len());
    Ok(())
}
