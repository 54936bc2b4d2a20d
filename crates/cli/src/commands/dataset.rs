//! `tailor dataset push|list|show|preview|report|rm`

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::Digest as _;
use tailor_pb::dataset as pb;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::args::{Dataset, Push, VersionedName};
use crate::connect::Endpoints;
use crate::output::{Output, bytes, time};
use crate::table;

/// Bytes of a file in one message.
const CHUNK: usize = 256 << 10;

pub async fn run(endpoints: &Endpoints, command: &Dataset, output: &Output) -> anyhow::Result<()> {
    match command {
        Dataset::Push(args) => push(endpoints, args, output).await.map(|_| ()),
        Dataset::List => list(endpoints, output).await,
        Dataset::Show { name } => show(endpoints, name, output).await,
        Dataset::Preview { name, base, rows, loss_on } => {
            let request = pb::PreviewRequest {
                name: name.name.clone(),
                version: name.version,
                base: base.clone().unwrap_or_default(),
                rows: *rows,
                loss_on: loss_on.clone(),
            };
            preview(endpoints, request, output).await
        }
        Dataset::Report { name } => report(endpoints, name, output).await,
        Dataset::Rm { name } => {
            let request = pb::DeleteDatasetRequest { name: name.clone() };
            let deleted = endpoints.dataset()?.delete_dataset(request).await?.into_inner().versions_deleted;
            output.show(&json!({ "name": name, "versions_deleted": deleted }), || {
                println!("deleted {name} ({deleted} version{})", if deleted == 1 { "" } else { "s" });
            })
        }
    }
}

/// Uploads a file; returns the dataset and whether it is new.
pub async fn push(endpoints: &Endpoints, args: &Push, output: &Output) -> anyhow::Result<pb::UploadDatasetResponse> {
    let sha256 = hash(&args.file).await.with_context(|| format!("cannot read {}", args.file.display()))?;
    let file_name = args.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let header = pb::UploadHeader {
        name: args.name.clone(),
        format: args.format.clone().unwrap_or_default(),
        file_name,
        input_column: args.input.clone().unwrap_or_default(),
        target_column: args.target.clone().unwrap_or_default(),
        kind: args.kind.clone().unwrap_or_default(),
        messages_column: args.messages.clone().unwrap_or_default(),
        chosen_column: args.chosen.clone().unwrap_or_default(),
        rejected_column: args.rejected.clone().unwrap_or_default(),
        id_column: args.id.clone().unwrap_or_default(),
        label_column: args.label.clone().unwrap_or_default(),
        prompt_template: args.template.clone(),
        validation_fraction: args.validation,
        max_label_ratio: args.max_label_ratio,
        seed: args.seed,
        sha256,
        new_version: args.new_version,
    };
    let (parts, stream) = mpsc::channel(4);
    let mut file = tokio::fs::File::open(&args.file).await?;
    let reading = tokio::spawn(async move {
        let part = pb::upload_dataset_request::Part::Header(header);
        let mut next = pb::UploadDatasetRequest { part: Some(part) };
        // The server hangs up when it refuses the header; its answer says why.
        while parts.send(next).await.is_ok() {
            let mut chunk = vec![0; CHUNK];
            let count = file.read(&mut chunk).await?;
            if count == 0 {
                break;
            }
            chunk.truncate(count);
            next = pb::UploadDatasetRequest { part: Some(pb::upload_dataset_request::Part::Chunk(chunk)) };
        }
        std::io::Result::Ok(())
    });
    let answer = endpoints.dataset()?.upload_dataset(ReceiverStream::new(stream)).await?.into_inner();
    reading.await?.with_context(|| format!("cannot read {}", args.file.display()))?;
    let dataset = answer.dataset.clone().unwrap_or_default();
    let mut document = describe(&dataset);
    document["created"] = json!(answer.created);
    output.show(&document, || {
        let verb = if answer.created { "pushed" } else { "unchanged:" };
        println!(
            "{verb} {}@{}: {} rows to train on, {} held out, {} dropped (`tailor dataset report {}` says why)",
            dataset.name,
            dataset.version,
            dataset.rows_train,
            dataset.rows_validation,
            dataset.rows_dropped,
            dataset.name
        );
    })?;
    Ok(answer)
}

async fn hash(path: &Path) -> std::io::Result<String> {
    let mut file = tokio::fs::File::open(path).await?;
    let mut hasher = sha2::Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = file.read(&mut chunk).await?;
        if count == 0 {
            return Ok(tailor_domain::Digest::from_sha256(&hasher.finalize().into()).to_string());
        }
        hasher.update(&chunk[..count]);
    }
}

async fn list(endpoints: &Endpoints, output: &Output) -> anyhow::Result<()> {
    let mut client = endpoints.dataset()?;
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let page = Some(tailor_pb::common::Page { size: 0, token });
        let answer = client.list_datasets(pb::ListDatasetsRequest { page }).await?.into_inner();
        all.extend(answer.datasets);
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    output.show(&all.iter().map(describe).collect::<Vec<_>>(), || {
        let rows: Vec<_> = all
            .iter()
            .map(|d| {
                vec![
                    format!("{}@{}", d.name, d.version),
                    d.rows_train.to_string(),
                    d.rows_validation.to_string(),
                    d.rows_dropped.to_string(),
                    bytes(d.source_size_bytes),
                    time(d.created_at_ms),
                ]
            })
            .collect();
        table::print(&["dataset", "train", "held out", "dropped", "size", "created"], &rows);
    })
}

async fn show(endpoints: &Endpoints, name: &VersionedName, output: &Output) -> anyhow::Result<()> {
    let request = pb::GetDatasetRequest { name: name.name.clone(), version: name.version };
    let dataset = endpoints.dataset()?.get_dataset(request).await?.into_inner();
    output.show(&describe(&dataset), || {
        table::fields(&[
            ("dataset", format!("{}@{}", dataset.name, dataset.version)),
            ("kind", dataset.kind.clone()),
            ("digest", dataset.digest.clone()),
            ("train", format!("{} rows", dataset.rows_train)),
            ("held out", format!("{} rows", dataset.rows_validation)),
            ("dropped", format!("{} rows", dataset.rows_dropped)),
            ("source", bytes(dataset.source_size_bytes)),
            ("template", dataset.prompt_template.clone()),
            ("created", time(dataset.created_at_ms)),
        ]);
    })
}

async fn preview(endpoints: &Endpoints, request: pb::PreviewRequest, output: &Output) -> anyhow::Result<()> {
    let answer = endpoints.dataset()?.preview(request).await?.into_inner();
    let token = |t: &pb::PreviewToken| json!({ "id": t.id, "text": t.text, "in_loss": t.in_loss });
    let document: Vec<_> = answer
        .rows
        .iter()
        .map(|row| {
            json!({
                "prompt": row.prompt,
                "target": row.target,
                "encoder_tokens": row.encoder_tokens.iter().map(token).collect::<Vec<_>>(),
                "tokens": row.tokens.iter().map(token).collect::<Vec<_>>(),
                "rejected": row.rejected,
                "rejected_tokens": row.rejected_tokens.iter().map(token).collect::<Vec<_>>(),
                "refused": row.refused,
            })
        })
        .collect();
    output.show(&document, || {
        for row in &answer.rows {
            println!("prompt  {}\ntarget  {}", row.prompt, row.target);
            if !row.encoder_tokens.is_empty() {
                println!("encoder {}", tokens(&row.encoder_tokens));
            }
            if !row.tokens.is_empty() {
                println!("tokens  {}   (green: counts in the loss)", tokens(&row.tokens));
            }
            if !row.rejected.is_empty() {
                println!("worse   {}", row.rejected);
            }
            if !row.rejected_tokens.is_empty() {
                println!("tokens  {}", tokens(&row.rejected_tokens));
            }
            if !row.refused.is_empty() {
                println!("refused {}", row.refused);
            }
            println!();
        }
    })
}

fn tokens(tokens: &[pb::PreviewToken]) -> String {
    let shown = tokens.iter().map(|token| {
        let text = format!("{}:{}", token.id, token.text);
        if token.in_loss { console::style(text).green().to_string() } else { console::style(text).dim().to_string() }
    });
    shown.collect::<Vec<_>>().join(" ")
}

pub async fn report(endpoints: &Endpoints, name: &VersionedName, output: &Output) -> anyhow::Result<()> {
    let request = pb::GetReportRequest { name: name.name.clone(), version: name.version };
    let report = endpoints.dataset()?.get_report(request).await?.into_inner();
    let dataset = report.dataset.clone().unwrap_or_default();
    let sorted = |map: &std::collections::HashMap<String, u64>| {
        let mut pairs: Vec<_> = map.iter().map(|(name, count)| (name.clone(), *count)).collect();
        pairs.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        pairs
    };
    let document = json!({
        "dataset": describe(&dataset),
        "rows_read": report.rows_read,
        "dropped": report.dropped,
        "examples": report.examples.iter().map(|row| json!({
            "line": row.line, "field": row.field, "reason": row.reason, "detail": row.detail
        })).collect::<Vec<_>>(),
        "labels_before": report.labels_before,
        "labels_after": report.labels_after,
        "length_histogram": report.length_histogram.iter()
            .map(|bucket| json!({ "up_to_characters": bucket.up_to_characters, "rows": bucket.rows })).collect::<Vec<_>>(),
    });
    output.show(&document, || {
        println!(
            "{}@{} ({}): {} rows read, {} to train on, {} held out, {} dropped",
            dataset.name,
            dataset.version,
            dataset.kind,
            report.rows_read,
            dataset.rows_train,
            dataset.rows_validation,
            dataset.rows_dropped
        );
        for (reason, count) in sorted(&report.dropped) {
            println!("\n  {count} × {reason}");
            for row in report.examples.iter().filter(|row| row.reason == reason).take(3) {
                let field = if row.field.is_empty() { String::new() } else { format!(", field {:?}", row.field) };
                println!("      line {}{field}: {}", row.line, row.detail);
            }
        }
        if !report.labels_before.is_empty() {
            println!("\n  labels");
            for (label, before) in sorted(&report.labels_before) {
                let after = report.labels_after.get(&label).copied().unwrap_or(0);
                println!("      {label:<12} {before:>6} rows, {after} kept");
            }
        }
        let longest = report.length_histogram.iter().map(|bucket| bucket.rows).max().unwrap_or(0).max(1);
        println!("\n  characters in a row's texts");
        for bucket in &report.length_histogram {
            let bar = "█".repeat((bucket.rows * 40 / longest) as usize);
            println!("      ≤ {:>5} {:>6} {bar}", bucket.up_to_characters, bucket.rows);
        }
    })
}

fn describe(dataset: &pb::Dataset) -> Value {
    json!({
        "name": dataset.name,
        "version": dataset.version,
        "kind": dataset.kind,
        "digest": dataset.digest,
        "rows_train": dataset.rows_train,
        "rows_validation": dataset.rows_validation,
        "rows_dropped": dataset.rows_dropped,
        "source_size_bytes": dataset.source_size_bytes,
        "prompt_template": dataset.prompt_template,
        "created_at_ms": dataset.created_at_ms,
    })
}
