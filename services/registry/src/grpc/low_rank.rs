//! Spectrum, comparison and compression on the wire.

use tailor_domain::{AdapterName, Invalid};
use tailor_pb::registry::compress_request::Keep as WireKeep;
use tailor_pb::registry::{
    self as pb, AdapterVersion, CompareRequest, CompressRequest, CompressResponse, GetSpectrumRequest,
};
use tailor_peft::{Keep, LayerComparison, LayerSpectrum};

use crate::low_rank::{Compression, Lighter, OfVersion};
use crate::{Registry, Result};

pub async fn spectrum(registry: &Registry, request: GetSpectrumRequest) -> Result<pb::Spectrum> {
    let OfVersion { manifest, spectrum, notes } = registry.spectrum(&request.reference.parse()?).await?;
    Ok(pb::Spectrum {
        adapter: manifest.adapter.to_string(),
        version: manifest.version.0,
        layers: spectrum.layers.into_iter().map(wire_layer).collect(),
        notes,
    })
}

pub async fn compare(registry: &Registry, request: CompareRequest) -> Result<pb::Comparison> {
    let (found, notes) = registry.compare(&request.first.parse()?, &request.second.parse()?).await?;
    let [output_overlap, input_overlap, distance] = found.means();
    Ok(pb::Comparison {
        layers: found.layers.into_iter().map(wire_comparison).collect(),
        only_in_first: found.only_in_first,
        only_in_second: found.only_in_second,
        mean_output_overlap: output_overlap,
        mean_input_overlap: input_overlap,
        mean_distance: distance,
        notes,
    })
}

pub async fn compress(registry: &Registry, request: CompressRequest) -> Result<CompressResponse> {
    let keep = match request.keep {
        Some(WireKeep::Rank(rank)) => Keep::Rank(rank as usize),
        Some(WireKeep::Energy(share)) => Keep::Energy(share),
        None => return Err(Invalid::new("keep", "say a rank, or a share of the energy such as 0.99").into()),
    };
    let name = Some(request.name).filter(|name| !name.is_empty()).map(AdapterName::try_new).transpose()?;
    let wanted = Compression { from: request.reference.parse()?, keep, name, who: request.who };
    let Lighter { manifest, created, compressed } = registry.compress(&wanted).await?;
    let layer = |(layer, rank): (&LayerSpectrum, usize)| pb::CompressedLayer {
        path: layer.path.clone(),
        rank_before: layer.rank as u32,
        rank: rank as u32,
        energy_lost: 1.0 - layer.energy_kept(rank),
    };
    Ok(CompressResponse {
        version: Some(AdapterVersion::from(&*manifest)),
        created,
        energy_lost: compressed.energy_lost(),
        layers: compressed.layers().map(layer).collect(),
    })
}

fn wire_layer(layer: LayerSpectrum) -> pb::LayerSpectrum {
    pb::LayerSpectrum {
        effective_rank: layer.effective_rank(),
        path: layer.path,
        rank: layer.rank as u32,
        out_features: layer.out_features as u64,
        in_features: layer.in_features as u64,
        singular_values: layer.singular_values,
    }
}

fn wire_comparison(layer: LayerComparison) -> pb::LayerComparison {
    pb::LayerComparison {
        path: layer.path,
        first_rank: layer.ranks.0 as u32,
        second_rank: layer.ranks.1 as u32,
        output_overlap: layer.output_overlap,
        input_overlap: layer.input_overlap,
        output_overlap_by_chance: layer.by_chance.0,
        input_overlap_by_chance: layer.by_chance.1,
        distance: layer.distance,
    }
}
