//! `tailor adapter spectrum|compress|compare`: what an adapter's ranks hold, fewer of them, and two versions side by side.

mod compress;
mod measure;
mod plot;

use std::path::Path;

use serde_json::{Value, json};
use tailor_pb::registry as pb;
use tailor_peft::{Adapter, LayerComparison, LayerSpectrum, Limits};

pub use self::compress::run as compress;
use crate::commands::adapter::resolve;
use crate::commands::blobs;
use crate::connect::Endpoints;
use crate::output::Output;
use crate::picture::Format;
use crate::table;

pub async fn spectrum(
    endpoints: &Endpoints,
    reference: &str,
    file: Option<&Path>,
    output: &Output,
) -> anyhow::Result<()> {
    let format = file.map(Format::of).transpose()?;
    let (version, adapter) = fetch(endpoints, reference).await?;
    let mut spectrum = adapter.spectrum()?;
    spectrum.layers.sort_by(|left, right| in_order(&left.path).cmp(in_order(&right.path)));
    let note = adapter.limits_of_figures().unwrap_or_default();
    if let Some((file, format)) = file.zip(format) {
        let (name, layers) = (name_of(&version), spectrum.layers.len());
        let about = format!("{name} on {}: {layers} layers, rank {} at most", version.base, spectrum.max_rank());
        format.write(&plot::energy_over_rank(&spectrum, &about), file)?;
    }
    let document = json!({
        "adapter": version.adapter,
        "version": version.version,
        "base": version.base,
        "note": note,
        "plot": file,
        "layers": spectrum.layers.iter().map(describe_layer).collect::<Vec<_>>(),
    });
    output.show(&document, || {
        let rows: Vec<_> = spectrum.layers.iter().map(layer_cells).collect();
        table::print(&["layer", "size", "rank", "effective", "for 90 %", "for 99 %", "largest"], &rows);
        let effective: f64 = spectrum.layers.iter().map(LayerSpectrum::effective_rank).sum();
        println!("\nmean effective rank {:.2}", effective / spectrum.layers.len() as f64);
        if !note.is_empty() {
            println!("{note}");
        }
        if let Some(file) = file {
            println!("plot in {}", file.display());
        }
    })
}

fn layer_cells(layer: &LayerSpectrum) -> Vec<String> {
    vec![
        layer.path.clone(),
        format!("{}x{}", layer.out_features, layer.in_features),
        layer.rank.to_string(),
        format!("{:.2}", layer.effective_rank()),
        layer.rank_for_energy(0.9).to_string(),
        layer.rank_for_energy(0.99).to_string(),
        format!("{:.4}", layer.singular_values.first().unwrap_or(&0.0)),
    ]
}

fn describe_layer(layer: &LayerSpectrum) -> Value {
    let kept: Vec<f64> = (1..=layer.singular_values.len()).map(|rank| layer.energy_kept(rank)).collect();
    json!({
        "path": layer.path,
        "out_features": layer.out_features,
        "in_features": layer.in_features,
        "rank": layer.rank,
        "effective_rank": layer.effective_rank(),
        "rank_for_90": layer.rank_for_energy(0.9),
        "rank_for_99": layer.rank_for_energy(0.99),
        "singular_values": layer.singular_values,
        "energy_kept": kept,
    })
}

pub async fn compare(endpoints: &Endpoints, first: &str, second: &str, output: &Output) -> anyhow::Result<()> {
    let (one, first) = fetch(endpoints, first).await?;
    let (two, second) = fetch(endpoints, second).await?;
    let mut found = first.compare(&second)?;
    found.layers.sort_by(|left, right| in_order(&left.path).cmp(in_order(&right.path)));
    let mut notes = Vec::new();
    if one.base_fingerprint != two.base_fingerprint {
        notes.push(format!("the bases differ ({} and {}): equal directions may mean other things", one.base, two.base));
    }
    notes.extend(first.limits_of_figures().or(second.limits_of_figures()).map(str::to_owned));
    let [output_overlap, input_overlap, distance] = found.means();
    let document = json!({
        "first": name_of(&one),
        "second": name_of(&two),
        "notes": notes,
        "mean": { "output_overlap": output_overlap, "input_overlap": input_overlap, "distance": distance },
        "layers": found.layers.iter().map(describe_comparison).collect::<Vec<_>>(),
        "only_in_first": found.only_in_first,
        "only_in_second": found.only_in_second,
    });
    output.show(&document, || {
        let mut rows: Vec<_> = found.layers.iter().map(comparison_cells).collect();
        let mean = ["mean".into(), String::new(), share(output_overlap), String::new(), share(input_overlap)];
        rows.push(mean.into_iter().chain([String::new(), share(distance)]).collect());
        table::print(&["layer", "ranks", "outputs", "(chance)", "inputs", "(chance)", "distance"], &rows);
        for (name, alone) in [(name_of(&one), &found.only_in_first), (name_of(&two), &found.only_in_second)] {
            if !alone.is_empty() {
                println!("only in {name}: {}", alone.join(", "));
            }
        }
        notes.iter().for_each(|note| println!("{note}"));
    })
}

fn comparison_cells(layer: &LayerComparison) -> Vec<String> {
    vec![
        layer.path.clone(),
        format!("{}, {}", layer.ranks.0, layer.ranks.1),
        share(layer.output_overlap),
        share(Some(layer.by_chance.0)),
        share(layer.input_overlap),
        share(Some(layer.by_chance.1)),
        share(layer.distance),
    ]
}

fn describe_comparison(layer: &LayerComparison) -> Value {
    json!({
        "path": layer.path,
        "ranks": layer.ranks,
        "output_overlap": layer.output_overlap,
        "input_overlap": layer.input_overlap,
        "chance": layer.by_chance,
        "distance": layer.distance,
    })
}

fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.3}"))
}

fn name_of(version: &pb::AdapterVersion) -> String {
    format!("{}@{}", version.adapter, version.version)
}

/// Layer 2 before layer 10.
fn in_order(path: &str) -> impl Iterator<Item = (u64, &str)> {
    path.split('.').map(|part| (part.parse().unwrap_or(u64::MAX), part))
}

async fn fetch(endpoints: &Endpoints, reference: &str) -> anyhow::Result<(pb::AdapterVersion, Adapter)> {
    let version = resolve(endpoints, reference).await?;
    let mut client = endpoints.registry()?;
    let config = blobs::download(&mut client, &version.config_digest).await?;
    let weights = blobs::download(&mut client, &version.weights_digest).await?;
    let adapter = Adapter::from_bytes(&config, &weights, &Limits::default())?;
    Ok((version, adapter))
}
