//! NVIDIA's GPUs, where the process finds what they need: libtorch's CUDA library, the driver, NVRTC.
//!
//! The program is linked against libtorch's CPU libraries alone. [`open`] loads `libtorch_cuda.so` while the program runs;
//! its initialisers register CUDA with the libtorch that is already there, so it must be of the same build. That has to
//! happen before anything asks libtorch whether there is a GPU, because the answer is kept.

mod driver;
mod memory;

use std::path::Path;
use std::sync::OnceLock;

use tch::Device;

use crate::library::{Library, folder_of_loaded};
use crate::{Error, Result};

pub use memory::{DeviceBytes, Parked, device_bytes, managed_like, reset_device_peak, upload};

const LIBRARY: &str = "libtorch_cuda.so";

/// Loads what a GPU needs, once a process. Returns how many GPUs there are, at least one.
///
/// # Errors
/// What is missing, with the remedy.
pub fn open() -> Result<usize> {
    static OPENED: OnceLock<std::result::Result<usize, String>> = OnceLock::new();
    OPENED.get_or_init(try_open).clone().map_err(Error::Gpu)
}

fn try_open() -> std::result::Result<usize, String> {
    let beside = folder_of_loaded("libtorch_cpu.so").map(|folder| folder.join(LIBRARY));
    let beside = beside.filter(|file| file.exists());
    let file = beside.as_deref().unwrap_or(Path::new(LIBRARY));
    Library::open(file, true).map_err(|error| {
        format!(
            "no GPU can be used: {error}; the CUDA set of libtorch 2.11 must be on the library path (LD_LIBRARY_PATH), \
             its libtorch_cpu.so included"
        )
    })?;
    driver::open()?;
    if !tch::Cuda::is_available() {
        return Err(
            "no GPU can be used: libtorch finds none; is the driver loaded (nvidia-smi), and is a card visible \
                    (CUDA_VISIBLE_DEVICES)?"
                .into(),
        );
    }
    let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    if count == 0 { Err("no GPU can be used: the driver shows none".into()) } else { Ok(count) }
}

/// Makes the kernels ready on a GPU (compiling them takes seconds the first time), and says what it is.
///
/// # Errors
/// No such GPU, one older than compute capability 8.0, no NVRTC.
pub fn prepare(index: usize) -> Result<Card> {
    let count = open()?;
    if index >= count {
        return Err(Error::Gpu(format!("there is no GPU {index}; there are {count}, counted from 0")));
    }
    driver::prepare(index).map_err(Error::Gpu)
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    pub name: String,
    pub memory_bytes: u64,
    /// Compute capability times ten: 90 is 9.0.
    pub capability: u32,
    pub multiprocessors: u32,
}

/// The variable that names the device of this process, as [`device`] takes it; unset means `auto`.
pub const VARIABLE: &str = "TAILOR_DEVICE";

/// The device that this process computes on.
///
/// # Errors
/// As [`device`], naming the variable.
pub fn chosen_device() -> Result<Device> {
    let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else { return device("auto") };
    device(&name.to_string_lossy()).map_err(|error| Error::Gpu(format!("{VARIABLE}: {error}")))
}

/// The device of this name: `cpu`, `cuda`, `cuda:1`, or `auto`, which is the first GPU where there is one and else the
/// CPU. A GPU is ready for use then.
///
/// # Errors
/// Another name; a GPU that cannot be used, except with `auto`.
pub fn device(name: &str) -> Result<Device> {
    let wrong = || Error::Gpu(format!("device {name:?} is none of cpu, cuda, cuda:<number>, auto"));
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(prepare(0).map_or(Device::Cpu, |_| Device::Cuda(0))),
        _ => {
            let number = name.strip_prefix("cuda").ok_or_else(wrong)?;
            let index = match number.strip_prefix(':') {
                None if number.is_empty() => 0,
                None => return Err(wrong()),
                Some(number) => number.parse().map_err(|_| wrong())?,
            };
            prepare(index)?;
            Ok(Device::Cuda(index))
        }
    }
}
