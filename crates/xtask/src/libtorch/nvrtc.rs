//! NVRTC for the tests: it compiles our kernels for GPUs, and needs none itself.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::download::{self, Remote, disk};
use super::set::{Pick, Wheel};
use super::{index, wheel};
use crate::lock::Lock;
use crate::workspace;

/// The version that belongs to the CUDA of our libtorch.
const VERSION: &str = "13.0.88";
const LIBRARY: &str = "libnvrtc.so.13";
const WHEEL: Wheel = Wheel {
    project: "nvidia-cuda-nvrtc",
    filename: "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
    size_bytes: 90_215_200,
    record_sha256: "c836d98d0eebc101713a79a8d2802f22dfe8b3f9118403d987470bc0b59c9e0b",
    picks: &[
        Pick { from: "nvidia/cu13/lib/libnvrtc.so.13", to: LIBRARY },
        Pick { from: "nvidia/cu13/lib/libnvrtc-builtins.so.13.0", to: "libnvrtc-builtins.so.13.0" },
    ],
};

/// The library's file in the cache, fetched if need be.
pub fn library() -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let place = cache.join(format!("nvrtc-{VERSION}"));
    let library = place.join(LIBRARY);
    if library.exists() {
        return Ok(library);
    }
    let downloads = cache.join("downloads");
    fs::create_dir_all(&downloads).map_err(|error| disk(&downloads, error))?;
    let _lock = Lock::take(&cache.join(format!("nvrtc-{VERSION}.lock")), "NVRTC")?;
    if library.exists() {
        return Ok(library);
    }
    let index = index::configured();
    println!("NVRTC {VERSION}: fetching 45 MB from {index} into {}", place.display());
    let agent = download::agent();
    let unpacked = place.with_extension("partial");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).map_err(|error| disk(&unpacked, error))?;
    }
    let url = index::find(&agent, &index, WHEEL.project, WHEEL.filename)?;
    let mut remote = Remote::new(&agent, url, WHEEL.filename, WHEEL.size_bytes, &downloads);
    wheel::install(&mut remote, &WHEEL, &unpacked)?;
    fs::rename(&unpacked, &place).map_err(|error| disk(&place, error))?;
    Ok(library)
}
