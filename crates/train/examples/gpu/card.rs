//! What the card itself does: copying, multiplying, and our dequantisation beside its copying.

use std::time::Instant;

use anyhow::{Context, Result};
use tailor_quant::{Code, Float, dynamic_map};
use tailor_torch::device::{DeviceParts, DeviceScales, DeviceWeight, dequantize_group};
use tch::{Cuda, Kind, Tensor};

/// The gate of an 8B model.
const OUT: i64 = 14336;
const IN: i64 = 4096;
const REPEATS: u32 = 50;

pub struct Rates {
    /// Bytes read and written a second by a copy of a large tensor.
    pub copied: f64,
    /// Bytes read and written a second by dequantising NF4 with nested scales to bf16.
    pub dequantised: f64,
    /// bf16 FLOP a second of an 8192³ product.
    pub multiplied: f64,
}

/// Measures all three on this card.
pub fn rates(index: usize) -> Result<Rates> {
    let device = tch::Device::Cuda(index);
    let timed = |work: &dyn Fn() -> Result<()>| -> Result<f64> {
        for _ in 0..5 {
            work()?;
        }
        Cuda::synchronize(index as i64);
        let started = Instant::now();
        for _ in 0..REPEATS {
            work()?;
        }
        Cuda::synchronize(index as i64);
        Ok(started.elapsed().as_secs_f64() / f64::from(REPEATS))
    };
    // Larger than any cache.
    let (from, mut to) =
        (Tensor::zeros([1 << 29], (Kind::Uint8, device)), Tensor::zeros([1 << 29], (Kind::Uint8, device)));
    let to_cell = std::cell::RefCell::new(&mut to);
    let copy = timed(&|| {
        to_cell.borrow_mut().copy_(&from);
        Ok(())
    })?;
    let weight = weight(device).context("a weight to dequantise")?;
    let dequantise = timed(&|| dequantize_group(&[&weight], Kind::BFloat16).map(drop).map_err(Into::into))?;
    let left = Tensor::randn([8192, 8192], (Kind::BFloat16, device));
    let multiply = timed(&|| left.f_matmul(&left).map(drop).map_err(Into::into))?;
    let moved = weight.resident_bytes() as f64 + (OUT * IN * 2) as f64;
    Ok(Rates {
        copied: 2.0 * (1u64 << 29) as f64 / copy,
        dequantised: moved / dequantise,
        multiplied: 2.0 * 8192f64.powi(3) / multiply,
    })
}

fn weight(device: tch::Device) -> Result<DeviceWeight> {
    let blocks = OUT * IN / 64;
    let floats = |values: &[f32]| Tensor::f_from_slice(values)?.f_to_device(device);
    let scales = DeviceScales::Nested {
        codes: Tensor::f_randint(256, [blocks], (Kind::Uint8, device))?,
        map: floats(&dynamic_map())?,
        absmax: Tensor::f_full([blocks / 256], 0.05, (Kind::Float, device))?,
        block: 256,
        offset: 0.05,
    };
    let packed = Tensor::f_randint(256, [OUT * IN / 2], (Kind::Uint8, device))?;
    let values = floats(&Code::Nf4.values())?;
    let parts = DeviceParts { packed, values, scales, block: 64, dtype: Float::Bf16 };
    Ok(DeviceWeight::from_parts(OUT, IN, &parts)?)
}
