//! `tailor adapter list|show|versions|set-alias|rollback|history|export|import`; what looks into an adapter's ranks is in
//! [`lowrank`].

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};
use tailor_pb::registry as pb;

use crate::args::{Adapter, Export};
use crate::commands::{blobs, gguf, job, lowrank, merge, oci, policy};
use crate::connect::Endpoints;
use crate::output::{Output, bytes, time};
use crate::table;

pub async fn run(endpoints: &Endpoints, command: &Adapter, output: &Output) -> anyhow::Result<()> {
    match command {
        Adapter::List => list(endpoints, output).await,
        Adapter::Show { reference } => {
            let version = resolve(endpoints, reference).await?;
            show(&version, output)
        }
        Adapter::Versions { name } => versions(endpoints, name, output).await,
        Adapter::SetAlias { name, alias, version, expect, why } => {
            let request = pb::SetAliasRequest {
                adapter: name.clone(),
                alias: alias.clone(),
                version: *version,
                expected_version: *expect,
                who: who(),
                why: why.clone(),
            };
            moved(&endpoints.registry()?.set_alias(request).await?.into_inner(), output)
        }
        Adapter::Rollback { name, alias, why } => {
            let request =
                pb::RollbackRequest { adapter: name.clone(), alias: alias.clone(), who: who(), why: why.clone() };
            moved(&endpoints.registry()?.rollback(request).await?.into_inner(), output)
        }
        Adapter::Policy(command) => policy::run(endpoints, command, output).await,
        Adapter::Approve { name, version, alias, why } => {
            policy::approve(endpoints, name, *version, alias, why, output).await
        }
        Adapter::History { name, alias } => history(endpoints, name, alias, output).await,
        Adapter::Export(command) if command.format == "gguf" => gguf::export(endpoints, command, output).await,
        Adapter::Export(command) => export(endpoints, command, output).await,
        Adapter::Merge(command) => merge::run(endpoints, command, output).await,
        Adapter::Import { dir, name, base, template } => import(endpoints, dir, name, base, template, output).await,
        Adapter::Spectrum { reference, plot } => lowrank::spectrum(endpoints, reference, plot.as_deref(), output).await,
        Adapter::Compress(compress) => lowrank::compress(endpoints, compress, output).await,
        Adapter::Compare { first, second } => lowrank::compare(endpoints, first, second, output).await,
    }
}

/// The principal that the registry notes.
pub fn who() -> String {
    std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "unknown".into())
}

pub async fn resolve(endpoints: &Endpoints, reference: &str) -> anyhow::Result<pb::AdapterVersion> {
    let request = pb::ResolveRequest { reference: reference.to_owned() };
    Ok(endpoints.registry()?.resolve(request).await?.into_inner())
}

async fn list(endpoints: &Endpoints, output: &Output) -> anyhow::Result<()> {
    let mut client = endpoints.registry()?;
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let page = Some(tailor_pb::common::Page { size: 0, token });
        let answer = client.list_adapters(pb::ListAdaptersRequest { page }).await?.into_inner();
        all.extend(answer.adapters);
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let document: Vec<_> = all
        .iter()
        .map(|a| json!({ "name": a.name, "latest_version": a.latest_version, "base": a.base, "aliases": a.aliases }))
        .collect();
    output.show(&document, || {
        let rows: Vec<_> = all
            .iter()
            .map(|adapter| {
                let mut aliases: Vec<_> = adapter.aliases.iter().map(|(alias, v)| format!("{alias}→{v}")).collect();
                aliases.sort();
                vec![adapter.name.clone(), adapter.latest_version.to_string(), adapter.base.clone(), aliases.join(", ")]
            })
            .collect();
        table::print(&["adapter", "latest", "base", "aliases"], &rows);
    })
}

async fn versions(endpoints: &Endpoints, name: &str, output: &Output) -> anyhow::Result<()> {
    let mut client = endpoints.registry()?;
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let page = Some(tailor_pb::common::Page { size: 0, token });
        let answer =
            client.list_versions(pb::ListVersionsRequest { adapter: name.to_owned(), page }).await?.into_inner();
        all.extend(answer.versions);
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    output.show(&all.iter().map(describe).collect::<Vec<_>>(), || {
        let rows: Vec<_> = all
            .iter()
            .map(|v| {
                let exact = v.metrics.get("exact_match").map(|m| format!("{:.1} %", m * 100.0)).unwrap_or_default();
                vec![
                    v.version.to_string(),
                    v.base.clone(),
                    v.dataset.clone(),
                    exact,
                    v.aliases.join(", "),
                    time(v.created_at_ms),
                ]
            })
            .collect();
        table::print(&["version", "base", "dataset", "exact match", "aliases", "created"], &rows);
    })
}

fn show(version: &pb::AdapterVersion, output: &Output) -> anyhow::Result<()> {
    output.show(&describe(version), || {
        table::fields(&[
            ("adapter", format!("{}@{}", version.adapter, version.version)),
            ("aliases", version.aliases.join(", ")),
            ("digest", version.digest.clone()),
            ("base", version.base.clone()),
            ("base fingerprint", version.base_fingerprint.clone()),
            ("quantisation", version.quant.clone()),
            ("dataset", version.dataset.clone()),
            ("dataset digest", version.dataset_digest.clone()),
            ("job", version.job_id.clone()),
            ("template", version.prompt_template.clone()),
            ("weights", format!("{} ({})", version.weights_digest, bytes(version.weights_size_bytes))),
            ("config", version.config_digest.clone()),
            ("metrics", job::metrics_line(&version.metrics)),
            ("notes", version.notes.clone()),
            ("created", time(version.created_at_ms)),
        ]);
    })
}

fn moved(alias: &pb::Alias, output: &Output) -> anyhow::Result<()> {
    output.show(&describe_move(alias), || {
        let before = if alias.previous_version == 0 { "nothing".into() } else { alias.previous_version.to_string() };
        println!("{}@{} → {} (was {before})", alias.adapter, alias.alias, alias.version);
    })
}

async fn history(endpoints: &Endpoints, name: &str, alias: &str, output: &Output) -> anyhow::Result<()> {
    let request = pb::GetAliasHistoryRequest { adapter: name.to_owned(), alias: alias.to_owned() };
    let moves = endpoints.registry()?.get_alias_history(request).await?.into_inner().moves;
    output.show(&moves.iter().map(describe_move).collect::<Vec<_>>(), || {
        let rows: Vec<_> = moves
            .iter()
            .map(|m| {
                let from = if m.previous_version == 0 { "-".into() } else { m.previous_version.to_string() };
                let what = if m.rollback { "rollback" } else { "set" };
                vec![
                    m.sequence.to_string(),
                    what.into(),
                    from,
                    m.version.to_string(),
                    m.who.clone(),
                    m.why.clone(),
                    time(m.at_ms),
                ]
            })
            .collect();
        table::print(&["#", "move", "from", "to", "who", "why", "at"], &rows);
    })
}

async fn export(endpoints: &Endpoints, command: &Export, output: &Output) -> anyhow::Result<()> {
    let dir = command.dir.as_path();
    anyhow::ensure!(
        command.dtype.is_none(),
        "--dtype is for --format gguf; {} has A and B as they were trained",
        if command.format == "oci" { "an artefact" } else { "a PEFT folder" }
    );
    let version = resolve(endpoints, &command.reference).await?;
    let mut client = endpoints.registry()?;
    let config = blobs::download(&mut client, &version.config_digest).await?;
    let weights = blobs::download(&mut client, &version.weights_digest).await?;
    // Built beside its place and renamed, so that a folder with this name is a whole one.
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => ".".into(),
    };
    std::fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let occupied = dir.read_dir().map(|mut entries| entries.next().is_some()).unwrap_or(dir.exists());
    anyhow::ensure!(!occupied, "{} exists and is not empty; give a new folder", dir.display());
    let partial = tempfile::tempdir_in(&parent).with_context(|| format!("cannot write in {}", parent.display()))?;
    let use_it = if command.format == "oci" {
        oci::write(partial.path(), &version, &config, &weights)?;
        "an OCI image layout: oras, skopeo"
    } else {
        std::fs::write(partial.path().join("adapter_config.json"), config)?;
        std::fs::write(partial.path().join("adapter_model.safetensors"), weights)?;
        "loads with peft"
    };
    if dir.exists() {
        std::fs::remove_dir(dir)?;
    }
    std::fs::rename(partial.keep(), dir).with_context(|| format!("cannot put the folder at {}", dir.display()))?;
    let mut document = describe(&version);
    document["dir"] = json!(dir);
    output.show(&document, || {
        println!("exported {}@{} to {} ({use_it})", version.adapter, version.version, dir.display());
    })
}

async fn import(
    endpoints: &Endpoints,
    dir: &Path,
    name: &str,
    base: &str,
    template: &str,
    output: &Output,
) -> anyhow::Result<()> {
    // Reading it here finds most faults before a byte travels.
    tailor_peft::Adapter::read_dir(dir, &tailor_peft::Limits::default())?;
    let mut client = endpoints.registry()?;
    let read =
        |file: &str| std::fs::read(dir.join(file)).with_context(|| format!("cannot read {file} in {}", dir.display()));
    let config_digest = blobs::upload_bytes(&mut client, &read("adapter_config.json")?).await?.to_string();
    let weights_digest = blobs::upload_bytes(&mut client, &read("adapter_model.safetensors")?).await?.to_string();
    let request = pb::PublishVersionRequest {
        adapter: name.to_owned(),
        base: base.to_owned(),
        config_digest,
        weights_digest,
        prompt_template: template.to_owned(),
        notes: format!("imported by {}", who()),
        who: who(),
        ..Default::default()
    };
    let version = client.publish_version(request).await?.into_inner();
    output.show(&describe(&version), || println!("published {}@{}", version.adapter, version.version))
}

pub fn describe(version: &pb::AdapterVersion) -> Value {
    json!({
        "adapter": version.adapter,
        "version": version.version,
        "digest": version.digest,
        "aliases": version.aliases,
        "base": version.base,
        "base_fingerprint": version.base_fingerprint,
        "quant": version.quant,
        "dataset": version.dataset,
        "dataset_digest": version.dataset_digest,
        "job_id": version.job_id,
        "prompt_template": version.prompt_template,
        "weights_digest": version.weights_digest,
        "weights_size_bytes": version.weights_size_bytes,
        "config_digest": version.config_digest,
        "tokenizer_digest": version.tokenizer_digest,
        "metrics": version.metrics,
        "notes": version.notes,
        "created_at_ms": version.created_at_ms,
    })
}

fn describe_move(alias: &pb::Alias) -> Value {
    json!({
        "adapter": alias.adapter,
        "alias": alias.alias,
        "version": alias.version,
        "previous_version": alias.previous_version,
        "sequence": alias.sequence,
        "who": alias.who,
        "why": alias.why,
        "rollback": alias.rollback,
        "at_ms": alias.at_ms,
    })
}
