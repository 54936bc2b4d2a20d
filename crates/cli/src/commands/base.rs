//! `tailor base add|list`: a Hugging Face folder is quantised here, on the client, and only 4-bit bytes travel.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use tailor_domain::{BaseName, Digest};
use tailor_hub::{Hub, HubOptions, Progress, RepoId};
use tailor_pb::common::FileRef;
use tailor_pb::registry as pb;
use tailor_quant::{Checkpoint, Float, QuantOptions, QuantReport, fingerprint, quantize_folder};
use tailor_text::tokenizer::Converted;

use crate::args::Base;
use crate::commands::blobs;
use crate::connect::Endpoints;
use crate::output::{Output, bytes, time};
use crate::table;

pub async fn run(endpoints: &Endpoints, command: &Base, output: &Output) -> anyhow::Result<()> {
    match command {
        Base::Add { source, name, revision, offline, quant, dtype } => {
            BaseName::try_new(name)?;
            let hub = FromHub { revision: revision.as_deref(), offline: *offline };
            let dir = folder(endpoints, source, &hub, output).await?;
            add(endpoints, &dir, name, quant, dtype, output).await.map(|_| ())
        }
        Base::List => list(endpoints, output).await,
    }
}

/// What only an id of the hub has.
struct FromHub<'a> {
    revision: Option<&'a str>,
    offline: bool,
}

/// The folder that `source` names: here, or fetched from the hub.
async fn folder(endpoints: &Endpoints, source: &str, hub: &FromHub<'_>, output: &Output) -> anyhow::Result<PathBuf> {
    let dir = Path::new(source);
    if dir.exists() {
        anyhow::ensure!(hub.revision.is_none(), "--revision is for a model of the hub; {source} is a folder here");
        return Ok(dir.to_owned());
    }
    let Ok(repo) = RepoId::parse(source) else {
        anyhow::bail!("{source} is no folder here, and no id of the hub as google/mt5-small either");
    };
    let mut options = HubOptions::from_env(endpoints.hub_cache());
    options.offline |= hub.offline;
    if !options.offline {
        output.say(format!("{source} is no folder here; asking {}", options.endpoint));
    }
    let bar = output.bar(0, "fetching    [{bar:30}] {bytes}/{total_bytes}  {eta} left  {msg}");
    let shown = bar.clone();
    let mut report = move |progress: Progress<'_>| {
        shown.set_length(progress.bytes_total);
        shown.set_position(progress.bytes_done);
        shown.set_message(progress.file.to_owned());
    };
    let fetched = Hub::new(options)?.snapshot(&repo, hub.revision.unwrap_or("main"), &mut report).await;
    bar.finish_and_clear();
    let snapshot = fetched.with_context(|| format!("{source} is no folder here, so the hub was asked"))?;
    output.say(format!("{repo} at {}", snapshot.commit));
    Ok(snapshot.folder)
}

/// Quantises `dir` and registers it. What the registry has already, under whatever name, is neither quantised nor sent
/// again.
pub async fn add(
    endpoints: &Endpoints,
    dir: &Path,
    name: &str,
    quant: &str,
    dtype: &str,
    output: &Output,
) -> anyhow::Result<pb::Base> {
    // Refused here, before minutes of work, not by the registry after them.
    BaseName::try_new(name)?;
    let code = tailor_pb::convert::quant_code(quant)?;
    let compute = if dtype == "f32" { Float::F32 } else { Float::Bf16 };
    let options = QuantOptions { code, compute, ..QuantOptions::default() };
    if let Some(known) = known(endpoints, dir, &options, quant, dtype, output).await? {
        let request = pb::RegisterBaseRequest {
            name: name.to_owned(),
            fingerprint: known.fingerprint,
            quant: quant.to_owned(),
            dtype: dtype.to_owned(),
            files: known.files,
            parameters: known.parameters,
        };
        let base = endpoints.registry()?.register_base(request).await?.into_inner();
        output.show(&describe(&base), || {
            println!(
                "base {}: {} parameters, {} on disk, as base {} before, nothing was quantised or sent; fingerprint {}",
                base.name,
                indicatif::HumanCount(base.parameters),
                bytes(base.size_bytes),
                known.name,
                base.fingerprint
            );
        })?;
        return Ok(base);
    }
    let tokenizer = Converted::of_folder(dir)?;
    let scratch_parent = endpoints.state.join("cache");
    std::fs::create_dir_all(&scratch_parent).with_context(|| format!("cannot make {}", scratch_parent.display()))?;
    let scratch = tempfile::tempdir_in(&scratch_parent)
        .with_context(|| format!("cannot write in {}", scratch_parent.display()))?;
    let report = quantise(dir, scratch.path(), options, output).await?;
    if let Some(tokenizer) = tokenizer {
        tokenizer.write(scratch.path())?;
    }
    let files = hash_files(scratch.path().to_owned()).await?;
    let mut client = endpoints.registry()?;
    let total = files.iter().map(|(_, file)| file.size_bytes).sum();
    let bar = output.bar(total, "uploading   [{bar:30}] {bytes}/{total_bytes}  {eta} left");
    for (path, file) in &files {
        blobs::upload_file(&mut client, path, &Digest::try_new(file.digest.clone())?, &bar).await?;
    }
    bar.finish_and_clear();
    if report.code != code {
        output.say(format!("{} is in {} already and was taken as it is", dir.display(), report.code.as_str()));
    }
    let request = pb::RegisterBaseRequest {
        name: name.to_owned(),
        fingerprint: report.fingerprint.to_string(),
        quant: report.code.as_str().to_owned(),
        dtype: dtype.to_owned(),
        files: files.into_iter().map(|(_, file)| file).collect(),
        parameters: report.parameters,
    };
    let base = client.register_base(request).await?.into_inner();
    output.show(&describe(&base), || {
        let weights = match report.quantized {
            0 => "weights as they came".to_owned(),
            count => format!("{count} linear weights in {}", base.quant),
        };
        println!(
            "base {}: {} parameters, {} on disk (was {}), {weights}, fingerprint {}",
            base.name,
            indicatif::HumanCount(base.parameters),
            bytes(base.size_bytes),
            bytes(report.source_bytes),
            base.fingerprint
        );
    })?;
    Ok(base)
}

/// A base of the registry that the folder would become once more. Gigabytes are read for that only where the headers
/// leave it possible.
async fn known(
    endpoints: &Endpoints,
    dir: &Path,
    options: &QuantOptions,
    quant: &str,
    dtype: &str,
    output: &Output,
) -> anyhow::Result<Option<pb::Base>> {
    let mut bases = all(endpoints).await?;
    bases.retain(|base| base.quant == quant && base.dtype == dtype);
    let folder = dir.to_owned();
    let parameters = tokio::task::spawn_blocking(move || Checkpoint::open(&folder)?.parameters()).await?;
    // What is wrong with a folder is said by quantising it.
    bases.retain(|base| parameters.as_ref().is_ok_and(|parameters| base.parameters == *parameters));
    if bases.is_empty() {
        return Ok(None);
    }
    let spinner = output.bar(0, "comparing   with {msg}");
    spinner.set_message(bases.iter().map(|base| base.name.as_str()).collect::<Vec<_>>().join(", "));
    let (folder, coding) = (dir.to_owned(), options.coding());
    let fingerprint = tokio::task::spawn_blocking(move || fingerprint(&folder, &coding)).await?;
    spinner.finish_and_clear();
    let Ok(fingerprint) = fingerprint.map(|fingerprint| fingerprint.to_string()) else { return Ok(None) };
    Ok(bases.into_iter().find(|base| base.fingerprint == fingerprint))
}

async fn quantise(source: &Path, target: &Path, options: QuantOptions, output: &Output) -> anyhow::Result<QuantReport> {
    let bar = output.bar(0, "quantising  [{bar:30}] {bytes}/{total_bytes}  {eta} left");
    let (source, target) = (source.to_owned(), target.to_owned());
    let shown = bar.clone();
    let report = tokio::task::spawn_blocking(move || {
        quantize_folder(&source, &target, &options, &mut |progress| {
            shown.set_length(progress.bytes_total);
            shown.set_position(progress.bytes_read);
        })
    })
    .await??;
    bar.finish_and_clear();
    Ok(report)
}

/// Every file of the quantised folder with its digest.
async fn hash_files(dir: PathBuf) -> anyhow::Result<Vec<(PathBuf, FileRef)>> {
    tokio::task::spawn_blocking(move || {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let mut file = std::fs::File::open(&path)?;
            let mut hasher = <sha2::Sha256 as sha2::Digest>::new();
            let size_bytes = std::io::copy(&mut file, &mut hasher)?;
            let digest = Digest::from_sha256(&sha2::Digest::finalize(hasher).into());
            files.push((path, FileRef { name, digest: digest.to_string(), size_bytes }));
        }
        files.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        Ok(files)
    })
    .await?
}

/// Every base of the registry.
async fn all(endpoints: &Endpoints) -> anyhow::Result<Vec<pb::Base>> {
    let mut client = endpoints.registry()?;
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let page = Some(tailor_pb::common::Page { size: 0, token });
        let answer = client.list_bases(pb::ListBasesRequest { page }).await?.into_inner();
        all.extend(answer.bases);
        token = answer.next_page_token;
        if token.is_empty() {
            return Ok(all);
        }
    }
}

async fn list(endpoints: &Endpoints, output: &Output) -> anyhow::Result<()> {
    let all = all(endpoints).await?;
    output.show(&all.iter().map(describe).collect::<Vec<_>>(), || {
        let rows: Vec<_> = all
            .iter()
            .map(|base| {
                vec![
                    base.name.clone(),
                    base.model_type.clone(),
                    indicatif::HumanCount(base.parameters).to_string(),
                    base.quant.clone(),
                    base.dtype.clone(),
                    bytes(base.size_bytes),
                    base.fingerprint.chars().take(19).collect(),
                    time(base.created_at_ms),
                ]
            })
            .collect();
        table::print(&["base", "type", "parameters", "code", "dtype", "size", "fingerprint", "added"], &rows);
    })
}

fn describe(base: &pb::Base) -> Value {
    json!({
        "name": base.name,
        "fingerprint": base.fingerprint,
        "family": base.family,
        "model_type": base.model_type,
        "quant": base.quant,
        "dtype": base.dtype,
        "parameters": base.parameters,
        "size_bytes": base.size_bytes,
        "files": base.files.iter().map(|file| json!({
            "name": file.name, "digest": file.digest, "size_bytes": file.size_bytes,
        })).collect::<Vec<_>>(),
        "created_at_ms": base.created_at_ms,
    })
}
