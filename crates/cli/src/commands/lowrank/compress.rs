//! `tailor adapter compress`: a version of lower rank, with what it lost written into it.
//!
//! A version never changes, so what is to stand in it is measured before it is published. The gateway serves published
//! adapters only: the compressed one is measured as a version of NAME.candidate, which is the same adapter by digest, so
//! it is loaded once.

use std::collections::HashMap;

use serde_json::{Value, json};
use tailor_pb::registry as pb;
use tailor_peft::{Adapter, Compressed, Keep};

use super::measure::{Evaluation, Measured};
use super::{fetch, name_of, share};
use crate::args::Compress;
use crate::commands::adapter::who;
use crate::commands::blobs;
use crate::connect::Endpoints;
use crate::output::{Output, bytes};
use crate::table;

/// What of the metrics is worth a line in the notes.
const TOLD: [&str; 3] = ["exact_match", "chrf", "edit_distance"];

pub async fn run(endpoints: &Endpoints, args: &Compress, output: &Output) -> anyhow::Result<()> {
    let keep = match (args.rank, args.energy) {
        (Some(rank), _) => Keep::Rank(rank),
        (None, Some(energy)) => Keep::Energy(energy),
        (None, None) => anyhow::bail!("say what to keep: --rank R or --energy 0.99"),
    };
    let (parent, original) = fetch(endpoints, &args.reference).await?;
    let compressed = original.compress(keep)?;
    let mut new = upload(endpoints, &parent, &compressed.adapter).await?;
    new.adapter = args.name.clone().unwrap_or_else(|| parent.adapter.clone());
    let measured = match args.rows {
        0 => None,
        // An import has no dataset: there is nothing to measure it with.
        _ if parent.dataset.is_empty() => None,
        rows => Some(measure(endpoints, &parent, &new, rows, output).await?),
    };
    new.metrics = metrics(&compressed, measured.as_ref());
    new.notes = notes(&parent, &original, &compressed, args, measured.as_ref());
    let version = endpoints.registry()?.publish_version(new).await?.into_inner();
    let document = json!({
        "adapter": version.adapter,
        "version": version.version,
        "from": name_of(&parent),
        "digest": version.digest,
        "weights_size_bytes": version.weights_size_bytes,
        "energy_lost": compressed.energy_lost(),
        "metrics": version.metrics,
        "notes": version.notes,
        "layers": compressed.layers().map(|(layer, rank)| json!({
            "path": layer.path, "rank_before": layer.rank, "rank": rank, "energy_lost": 1.0 - layer.energy_kept(rank),
        })).collect::<Vec<Value>>(),
    });
    output.show(&document, || {
        println!("published {} from {}", name_of(&version), name_of(&parent));
        table::fields(&[
            ("weights", format!("{} → {}", bytes(parent.weights_size_bytes), bytes(version.weights_size_bytes))),
            ("rank", ranks(&original, &compressed)),
            ("energy lost", lost(&compressed)),
            ("evaluation", evaluation(&parent, args, measured.as_ref())),
        ]);
    })
}

/// The compressed adapter as a version that is not published yet: lineage and template are its parent's.
async fn upload(
    endpoints: &Endpoints,
    parent: &pb::AdapterVersion,
    adapter: &Adapter,
) -> anyhow::Result<pb::PublishVersionRequest> {
    let mut client = endpoints.registry()?;
    Ok(pb::PublishVersionRequest {
        adapter: parent.adapter.clone(),
        base: parent.base.clone(),
        config_digest: blobs::upload_bytes(&mut client, &adapter.config_to_bytes()).await?.to_string(),
        weights_digest: blobs::upload_bytes(&mut client, &adapter.weights_to_bytes()?).await?.to_string(),
        prompt_template: parent.prompt_template.clone(),
        dataset: parent.dataset.clone(),
        dataset_digest: parent.dataset_digest.clone(),
        code_commit: parent.code_commit.clone(),
        license: parent.license.clone(),
        tags: parent.tags.clone(),
        who: who(),
        ..Default::default()
    })
}

async fn measure(
    endpoints: &Endpoints,
    parent: &pb::AdapterVersion,
    new: &pb::PublishVersionRequest,
    rows: usize,
    output: &Output,
) -> anyhow::Result<Measured> {
    let evaluation = Evaluation::prepare(endpoints, parent, rows).await?;
    let candidate = pb::PublishVersionRequest {
        adapter: format!("{}.candidate", new.adapter),
        notes: format!("compressed from {}, published to be measured", name_of(parent)),
        ..new.clone()
    };
    let candidate = endpoints.registry()?.publish_version(candidate).await?.into_inner();
    evaluation.run(endpoints, &name_of(parent), &name_of(&candidate), output).await
}

fn metrics(compressed: &Compressed, measured: Option<&Measured>) -> HashMap<String, f64> {
    let mut metrics = HashMap::from([("energy_lost".to_owned(), compressed.energy_lost())]);
    if let Some((_, share)) = compressed.worst_layer() {
        metrics.insert("energy_lost_worst_layer".into(), share);
    }
    if let Some(measured) = measured {
        metrics.extend(measured.after.clone());
        metrics.extend(measured.before.iter().map(|(name, value)| (format!("uncompressed_{name}"), *value)));
    }
    metrics
}

fn notes(
    parent: &pb::AdapterVersion,
    original: &Adapter,
    compressed: &Compressed,
    args: &Compress,
    measured: Option<&Measured>,
) -> String {
    format!(
        "compressed from {}: rank {}; energy lost {}; evaluation {}",
        name_of(parent),
        ranks(original, compressed),
        lost(compressed),
        evaluation(parent, args, measured)
    )
}

/// `16 → 3 to 8`.
fn ranks(original: &Adapter, compressed: &Compressed) -> String {
    let least = compressed.ranks.iter().min().copied().unwrap_or(0);
    let most = compressed.adapter.max_rank();
    let now = if least == most { most.to_string() } else { format!("{least} to {most}") };
    format!("{} → {now}", original.max_rank())
}

fn lost(compressed: &Compressed) -> String {
    let worst = compressed.worst_layer().map(|(path, share)| format!(" (most: {} of {path})", percent(share)));
    format!("{}{}", percent(compressed.energy_lost()), worst.unwrap_or_default())
}

fn percent(share: f64) -> String {
    format!("{:.3} %", share * 100.0)
}

fn evaluation(parent: &pb::AdapterVersion, args: &Compress, measured: Option<&Measured>) -> String {
    let Some(measured) = measured else {
        let reason = if args.rows == 0 { "--rows 0".into() } else { format!("{} has no dataset", name_of(parent)) };
        return format!("not measured ({reason})");
    };
    let value = |of: &HashMap<String, f64>, name: &str| share(of.get(name).copied());
    let told = TOLD.map(|name| format!("{name} {} → {}", value(&measured.before, name), value(&measured.after, name)));
    let skipped = match measured.skipped {
        0 => String::new(),
        count => format!(", {count} left out whose prompt cannot be asked as text"),
    };
    format!("{} on {} held-out rows{skipped}", told.join(", "), measured.rows)
}
