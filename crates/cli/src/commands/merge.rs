//! `tailor adapter merge`: base and adapter as one folder, made here from what the registry has.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tailor_merge::{Difference, MergeOptions, MergeReport, Progress, Stage, merge_folder};
use tailor_pb::registry as pb;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_peft::{Adapter, Limits};
use tailor_quant::Float;
use tailor_serverkit::client::Client;

use crate::args::Merge;
use crate::commands::{adapter, blobs};
use crate::connect::Endpoints;
use crate::output::{Output, bytes};

/// Below this the type is worth a second thought.
const SURVIVES: f64 = 0.95;

pub async fn run(endpoints: &Endpoints, merge: &Merge, output: &Output) -> anyhow::Result<()> {
    // Refused before gigabytes are fetched.
    let occupied = merge.dir.read_dir().map_or(merge.dir.exists(), |mut entries| entries.next().is_some());
    anyhow::ensure!(!occupied, "{} exists and is not empty; give a new folder", merge.dir.display());
    let mut client = endpoints.registry()?;
    let version = adapter::resolve(endpoints, &merge.reference).await?;
    let base = client.get_base(pb::GetBaseRequest { name: version.base.clone() }).await?.into_inner();
    let (was, is) = (&version.base_fingerprint, &base.fingerprint);
    anyhow::ensure!(was == is, "base {} is {is}, and the adapter was made for {was}", base.name);
    let requantize = merge.quant.as_deref().map(tailor_pb::convert::quant_code).transpose()?;
    let options = MergeOptions {
        compute: if base.dtype == "f32" { Float::F32 } else { Float::Bf16 },
        dtype: float(&merge.dtype),
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
    let (folder, target) = (fetched.path().to_owned(), merge.dir.clone());
    let report = put_together(folder, adapter, target, options, output).await?;
    output.show(&document(merge, &version, &report), || say(merge, &version, &report))
}

fn float(name: &str) -> Float {
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
    let bar = bar(output, "fetching    [{bar:30}] {bytes}/{total_bytes}  {eta} left");
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
    let bar = bar(output, "{msg:11} [{bar:30}] {pos}/{len} tensors  {eta} left");
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
        })
    });
    let report = merging.await?;
    bar.finish_and_clear();
    Ok(report?)
}

fn bar(output: &Output, template: &str) -> ProgressBar {
    if output.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("█▉ "));
    }
    bar
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
        "dir": merge.dir,
        "dtype": merge.dtype,
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
    let kind = merge.quant.as_deref().unwrap_or(&merge.dtype);
    let files = if report.files == 1 { "1 file".to_owned() } else { format!("{} files", report.files) };
    println!(
        "merged {}@{} into base {}: {} parameters in {kind}, {} in {files}, at {} (loads with transformers)",
        version.adapter,
        version.version,
        version.base,
        indicatif::HumanCount(report.parameters),
        bytes(report.bytes),
        merge.dir.display()
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
    if all.survives() < SURVIVES {
        println!("much of the update is lost: merge with --dtype f32, or serve base and adapter apart");
    }
}
