//! What a base takes of the device, told before it is loaded, so that room can be made first; and what the device has.

use std::fs;
use std::path::Path;

use tailor_models::{Base, Config, LoadOptions};
use tailor_torch::gpu;
use tch::Device;

use crate::error::Error;
use crate::options::EngineOptions;

const WEIGHTS: &str = "safetensors";

/// Bytes of a base's weights, as they lie in its folder, of what is made of them for serving, and of its keys and values. Dense weights that are computed in another
/// type than they are kept in take more or less: [`crate::EngineInfo`] has what it came to.
///
/// # Errors
/// The folder is no base that can be loaded.
pub fn demand(folder: &Path, options: &EngineOptions) -> Result<u64, Error> {
    let refused = |error: tailor_models::Error| Error::Base {
        folder: folder.display().to_string(),
        code: error.code(),
        problem: error.to_string(),
    };
    let config = Config::of_folder(folder).map_err(refused)?;
    let files = fs::read_dir(folder).map_err(|source| {
        let path = folder.display().to_string();
        refused(tailor_models::Error::Io { path, source })
    })?;
    let weights = files.flatten().filter(|file| Path::new(&file.file_name()).extension().is_some_and(|e| e == WEIGHTS));
    let weights: u64 = weights.filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum();
    let (blocks, block_bytes) = options.kv_blocks(&config);
    let prepared = gpu::chosen_device()
        .map_or(0, |device| Base::prepared_demand(&config, &LoadOptions { compute: options.compute, device }));
    Ok(weights.saturating_add(prepared).saturating_add(blocks.saturating_mul(block_bytes) as u64))
}

/// Bytes of the device that this process computes on: the GPU's, or what the machine or its control group has. None where
/// nobody says.
pub fn device_bytes() -> Option<u64> {
    match gpu::chosen_device() {
        Ok(Device::Cuda(index)) => gpu::prepare(index).ok().map(|card| card.memory_bytes),
        // Where a GPU is named and missing, no base gets far enough to take anything.
        Ok(_) | Err(_) => tailor_torch::total_bytes(),
    }
}
