//! `tailor dataset push|list|show|preview|report|rm`

use std::io::SeekFrom;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::Digest as _;
use tailor_pb::dataset as pb;
use tailor_pb::dataset::upload_dataset_request::Part;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tonic::Code;

use super::transfer::{self, Attempts};
use crate::args::{Dataset, Push, VersionedName};
use crate::connect::Endpoints;
use crate::output::{Output, bytes, time};
use crate::table;

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
    let answer = match args.file.to_str().filter(|file| file.contains("://")) {
        Some(url) => import(endpoints, url, args).await?,
        None => upload(endpoints, args, output).await?,
    };
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

/// Has the service read the file from object storage.
async fn import(endpoints: &Endpoints, url: &str, args: &Push) -> anyhow::Result<pb::UploadDatasetResponse> {
    let request = pb::ImportDatasetRequest { url: url.to_owned(), header: Some(header(args)) };
    let pb::ImportDatasetResponse { dataset, created } =
        endpoints.dataset()?.import_dataset(request).await?.into_inner();
    Ok(pb::UploadDatasetResponse { dataset, created })
}

/// What breaks off, now or when the same file was pushed before, is gone on with where the service has it.
async fn upload(endpoints: &Endpoints, args: &Push, output: &Output) -> anyhow::Result<pb::UploadDatasetResponse> {
    let cannot = || format!("cannot read {}", args.file.display());
    let (sha256, size_bytes) = hash(&args.file).await.with_context(cannot)?;
    let mut client = endpoints.dataset()?;
    let bar = output.bar(size_bytes, "uploading   [{bar:30}] {bytes}/{total_bytes}  {eta} left");
    let (mut attempts, mut goes_on) = (Attempts::default(), true);
    loop {
        let offset = if goes_on {
            let asked = client.get_upload(pb::GetUploadRequest { sha256: sha256.clone() }).await;
            // A service that is away says so when it is sent the file.
            asked.map_or(0, |answer| answer.into_inner().received_bytes.min(size_bytes))
        } else {
            0
        };
        bar.set_position(offset);
        let mut file = tokio::fs::File::open(&args.file).await.with_context(cannot)?;
        file.seek(SeekFrom::Start(offset)).await.with_context(cannot)?;
        let header = Part::Header(pb::UploadHeader { sha256: sha256.clone(), size_bytes, offset, ..header(args) });
        let part = |part| pb::UploadDatasetRequest { part: Some(part) };
        let chunk = |bytes| pb::UploadDatasetRequest { part: Some(Part::Chunk(bytes)) };
        let sent =
            transfer::send(part(header), file, chunk, &bar, async |parts| client.upload_dataset(parts).await).await;
        match sent {
            Ok(answer) => {
                bar.finish_and_clear();
                return Ok(answer);
            }
            // What is there is of another service than the one that was asked, or is not how this file begins.
            Err(error) if offset > 0 && matches!(error.code(), Code::FailedPrecondition | Code::InvalidArgument) => {
                goes_on = false;
            }
            Err(error) => {
                attempts.after(error).await?;
                goes_on = true;
            }
        }
    }
}

/// What is said of a file beside its bytes.
fn header(args: &Push) -> pb::UploadHeader {
    let given = |value: &Option<String>| value.clone().unwrap_or_default();
    pb::UploadHeader {
        name: args.name.clone(),
        format: given(&args.format),
        file_name: args.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        input_column: given(&args.input),
        target_column: given(&args.target),
        kind: given(&args.kind),
        messages_column: given(&args.messages),
        chosen_column: given(&args.chosen),
        rejected_column: given(&args.rejected),
        id_column: given(&args.id),
        label_column: given(&args.label),
        prompt_template: args.template.clone(),
        validation_fraction: args.validation,
        max_label_ratio: args.max_label_ratio,
        seed: args.seed,
        new_version: args.new_version,
        ..Default::default()
    }
}

/// A file's sha256 and its size.
async fn hash(path: &Path) -> std::io::Result<(String, u64)> {
    const PIECE: usize = 256 << 10;
    let mut file = tokio::fs::File::open(path).await?;
    let (mut hasher, mut size_bytes) = (sha2::Sha256::new(), 0);
    let mut piece = vec![0; PIECE];
    loop {
        let count = file.read(&mut piece).await?;
        if count == 0 {
            return Ok((tailor_domain::Digest::from_sha256(&hasher.finalize().into()).to_string(), size_bytes));
        }
        hasher.update(&piece[..count]);
        size_bytes += count as u64;
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
