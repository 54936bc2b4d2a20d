//! `tailor adapter merge`: base and adapter as one folder or GGUF file, made here from what the registry has; or made there, as a
//! base.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use tailor_merge::{Difference, MergeOptions, MergeReport, Progress, Stage, merge_folder};
use tailor_pb::registry as pb;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_pb::registry::merge_progress::Stage as WireStage;
use tailor_pb::registry::merge_response::What;
use tailor_peft::{Adapter, Limits};
use tailor_quant::Float;
use tailor_serverkit::client::Client;

use crate::args::Merge;
use crate::commands::{adapter, blobs, gguf};
use crate::connect::Endpoints;
use crate::output::{Output, bytes};

/// Below this the type is worth a second thought.
const SURVIVES: f64 = 0.95;

pub async fn run(endpoints: &Endpoints, merge: &Merge, output: &Output) -> anyhow::Result<()> {
    if let Some(name) = &merge.register {
        return register(endpoints, merge, name, output).await;
    }
    // Refused before gigabytes are fetched.
    check_target(merge)?;
    let mut client = endpoints.registry()?;
    let version = adapter::resolve(endpoints, &merge.reference).await?;
    let base = base_of(&mut client, &version).await?;
    if is_gguf(merge) {
        gguf::config(&mut client, &base).await?;
    }
    let requantize = merge.quant.as_deref().map(tailor_pb::convert::quant_code).transpose()?;
    let options = MergeOptions {
        compute: if base.dtype == "f32" { Float::F32 } else { Float::Bf16 },
        dtype: float(merge.dtype()),
        shard_bytes: merge.shard_size.0,
        requantize,
    };
    let config = blobs::download(&mut client, &version.config_digest).await?;
    let weights = blobs::download(&mut client, &version.weights_digest).await?;
    let adapter = Adapter::from_bytes(&config, &weights, &Limits::default())?;

    let cache = endpoints.state.join("cache");
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let fetched = tempfile::tempdir_in(&cache).with_context(|| format!("cannot write in {}", cache.display()))?;
    fetch(&mut client, &base, fetched.path(), output).await?;
    let folder = fetched.path().to_owned();
    if !is_gguf(merge) {
        let report = put_together(folder, adapter, merge.dir().to_owned(), options, output).await?;
        return output.show(&document(merge, &version, &report), || say(merge, &version, &report));
    }
    tailor_gguf::check_texts(&folder)?;
    let parent = merge.dir().parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let beside = tempfile::tempdir_in(parent).with_context(|| format!("cannot write in {}", parent.display()))?;
    let merged = beside.path().join("merged");
    let report = put_together(folder, adapter, merged.clone(), options, output).await?;
    let file = gguf::model(merged, merge.dir().to_owned(), &version, float(merge.dtype()), output).await?;
    let report = MergeReport { bytes: file.bytes, files: 1, tensors: file.tensors, ..report };
    let mut document = document(merge, &version, &report);
    document["gguf"] = gguf::document(&file);
    output.show(&document, || {
        say(merge, &version, &report);
        gguf::say_model(&version, &file);
    })
}

/// Lets the registry merge, and shows how far it is.
async fn register(endpoints: &Endpoints, merge: &Merge, name: &str, output: &Output) -> anyhow::Result<()> {
    anyhow::ensure!(
        merge.dtype.as_deref() != Some("f16"),
        "a base computes in bf16 or f32; give one of them as --dtype"
    );
    let request = pb::MergeRequest {
        reference: merge.reference.clone(),
        name: name.to_owned(),
        dtype: merge.dtype.clone().unwrap_or_default(),
        quant: merge.quant.clone().unwrap_or_default(),
    };
    let mut messages = endpoints.registry()?.merge(request).await?.into_inner();
    let bar = output.bar(0, "{msg:11} [{bar:30}] {pos}/{len}  {eta} left");
    let mut merged = None;
    while let Some(message) = messages.message().await? {
        match message.what {
            Some(What::Progress(at)) => {
                bar.set_message(match at.stage() {
                    WireStage::Fetching => "fetching",
                    WireStage::Merging => "merging",
                    WireStage::Quantising => "quantising",
                    WireStage::Comparing => "comparing",
                    WireStage::Storing => "storing",
                    WireStage::Unspecified => "",
                });
                bar.set_length(at.of);
                bar.set_position(at.done);
            }
            Some(What::Merged(last)) => merged = Some(last),
            None => {}
        }
    }
    bar.finish_and_clear();
    let merged = merged.context("the registry ended without a base; ask again")?;
    let base = merged.base.clone().context("the registry named no base")?;
    let from = base.merged_from.clone().unwrap_or_default();
    let document = json!({
        "base": base.name,
        "fingerprint": base.fingerprint,
        "quant": base.quant,
        "dtype": base.dtype,
        "parameters": base.parameters,
        "size_bytes": base.size_bytes,
        "adapter": from.adapter,
        "version": from.version,
        "from_base": from.base,
        "created": merged.created,
        "tensors": merged.tensors,
        "tensors_changed": merged.tensors_changed,
        "update_survives": merged.created.then_some(merged.update_survives),
    });
    output.show(&document, || {
        let (version, size) = (format!("{}@{}", from.adapter, from.version), bytes(base.size_bytes));
        if !merged.created {
            return println!("base {} is {version} in {} already, {size}", base.name, from.base);
        }
        println!(
            "base {}: {version} in {}, {} parameters, {size}, fingerprint {}",
            base.name,
            from.base,
            indicatif::HumanCount(base.parameters),
            base.fingerprint
        );
        println!(
            "{} of {} tensors differ; {:.2} % of the update survives",
            merged.tensors_changed,
            merged.tensors,
            100.0 * merged.update_survives
        );
        warn_if_lost(merged.update_survives);
    })
}

fn is_gguf(merge: &Merge) -> bool {
    merge.format == "gguf"
}

fn check_target(merge: &Merge) -> anyhow::Result<()> {
    let target = merge.dir().display();
    if !is_gguf(merge) {
        let occupied = merge.dir().read_dir().map_or(merge.dir().exists(), |mut entries| entries.next().is_some());
        anyhow::ensure!(!occupied, "{target} exists and is not empty; give a new folder");
        return Ok(());
    }
    anyhow::ensure!(!merge.dir().exists(), "{target} exists; give a new file");
    if let Some(quant) = &merge.quant {
        anyhow::bail!(
            "--quant {quant} is bitsandbytes' code, and GGUF has others; give the file to llama.cpp's llama-quantize"
        );
    }
    Ok(())
}

/// The base of a version, if it is still the one that the version was made for.
pub async fn base_of(
    client: &mut AdapterRegistryClient<Client>,
    version: &pb::AdapterVersion,
) -> anyhow::Result<pb::Base> {
    let base = client.get_base(pb::GetBaseRequest { name: version.base.clone() }).await?.into_inner();
    let (was, is) = (&version.base_fingerprint, &base.fingerprint);
    anyhow::ensure!(was == is, "base {} is {is}, and the adapter was made for {was}", base.name);
    Ok(base)
}

pub fn float(name: &str) -> Float {
    match name {
        "f32" => Float::F32,
        "f16" => Float::F16,
        _ => Float::Bf16,
    }
}

/// The base's folder.
async fn fetch(
    client: &mut AdapterRegistryClient<Client>,
    base: &pb::Base,
    folder: &Path,
    output: &Output,
) -> anyhow::Result<()> {
    let bar = output.bar(0, "fetching    [{bar:30}] {bytes}/{total_bytes}  {eta} left");
    bar.set_length(base.size_bytes);
    for file in &base.files {
        let is_plain = Path::new(&file.name).file_name().is_some_and(|name| name == file.name.as_str());
        anyhow::ensure!(is_plain, "base {} has a file {:?}, which is no plain file name", base.name, file.name);
        blobs::download_file(client, &file.digest, &folder.join(&file.name), &bar).await?;
    }
    bar.finish_and_clear();
    Ok(())
}

async fn put_together(
    base: PathBuf,
    adapter: Adapter,
    target: PathBuf,
    options: MergeOptions,
    output: &Output,
) -> anyhow::Result<MergeReport> {
    let bar = output.bar(0, "{msg:11} [{bar:30}] {pos}/{len} tensors  {eta} left");
    let shown = bar.clone();
    let merging = tokio::task::spawn_blocking(move || {
        merge_folder(&base, &adapter, &target, &options, &mut |Progress { stage, done, of }| {
            shown.set_message(match stage {
                Stage::Merging => "merging",
                Stage::Quantising => "quantising",
                Stage::Comparing => "comparing",
            });
            shown.set_length(of as u64);
            shown.set_position(done as u64);
            ControlFlow::Continue(())
        })
    });
    let report = merging.await?;
    bar.finish_and_clear();
    Ok(report?)
}

fn document(merge: &Merge, version: &pb::AdapterVersion, report: &MergeReport) -> Value {
    let figures = |difference: &Difference| {
        json!({
            "update_rms": difference.update_rms(),
            "error_rms": difference.error_rms(),
            "largest_error": difference.largest_error,
            "error_of_update": difference.error_of_update(),
            "update_survives": difference.survives(),
        })
    };
    let worst = report.worst().map(|(tensor, difference)| {
        let mut worst = figures(difference);
        worst["tensor"] = json!(tensor);
        worst
    });
    json!({
        "adapter": version.adapter,
        "version": version.version,
        "base": version.base,
        "dir": merge.dir(),
        "format": merge.format,
        "dtype": merge.dtype(),
        "quant": merge.quant,
        "parameters": report.parameters,
        "size_bytes": report.bytes,
        "files": report.files,
        "tensors": report.tensors,
        "tensors_changed": report.changed.len(),
        "untied": report.untied,
        "difference": figures(&report.difference()),
        "worst": worst,
        "rest": { "error_of_values": report.rest.error_of_values(), "largest_error": report.rest.largest_error },
    })
}

fn say(merge: &Merge, version: &pb::AdapterVersion, report: &MergeReport) {
    let kind = merge.quant.as_deref().unwrap_or(merge.dtype());
    let files = if report.files == 1 { "1 file".to_owned() } else { format!("{} files", report.files) };
    let reader = if is_gguf(merge) { "llama.cpp" } else { "transformers" };
    println!(
        "merged {}@{} into base {}: {} parameters in {kind}, {} in {files}, at {} (loads with {reader})",
        version.adapter,
        version.version,
        version.base,
        indicatif::HumanCount(report.parameters),
        bytes(report.bytes),
        merge.dir().display()
    );
    let all = report.difference();
    println!("{} of {} tensors differ from the base's", report.changed.len(), report.tensors);
    if report.untied {
        println!("the head was the embedding; they are two tensors now, because the adapter changes one of them");
    }
    if all.is_exact() {
        println!("difference to base and adapter: none, every merged f32 value was written as it is");
    } else {
        println!(
            "difference to base and adapter, by rounding to {kind}: {:.3} % of the update (RMS {:.2e} of {:.2e}), at most \
             {:.2e}; {:.2} % of the update survives",
            100.0 * all.error_of_update(),
            all.error_rms(),
            all.update_rms(),
            all.largest_error,
            100.0 * all.survives()
        );
        if let Some((tensor, worst)) = report.worst() {
            let (error, survives) = (100.0 * worst.error_of_update(), 100.0 * worst.survives());
            println!("worst: {tensor}, {error:.3} % of its update, {survives:.2} % survives");
        }
    }
    match report.rest.is_exact() {
        true => println!("what the adapter leaves alone is as in the base"),
        false => println!(
            "what the adapter leaves alone is rounded too, by {:.3} % of its values (RMS)",
            100.0 * report.rest.error_of_values()
        ),
    }
    warn_if_lost(all.survives());
}

fn warn_if_lost(survives: f64) {
    if survives < SURVIVES {
        println!("much of the update is lost: merge with --dtype f32, or serve base and adapter apart");
    }
}
