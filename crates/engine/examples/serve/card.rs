//! The card itself: what it copies, and products with 4-bit weights beside that.

use std::time::Instant;

use tailor_quant::{Code, Float, dynamic_map};
use tailor_testkit::LlamaShape;
use tailor_torch::device::step::product;
use tailor_torch::device::{DeviceParts, DeviceScales, DeviceWeight};
use tailor_torch::{gpu, kernels};
use tch::{Cuda, Device, Kind, Tensor};

use crate::Failure;

/// Bytes of weights that a row of the table goes through, so that no cache holds them.
const ROUND_BYTES: usize = 512 << 20;
const REPEATS: usize = 5;

pub struct Card {
    device: Device,
    name: String,
    copied: f64,
}

impl Card {
    /// `name` as `TAILOR_DEVICE` has it, or `emulated`.
    pub fn open(name: &str) -> Result<Self, Failure> {
        if name == "emulated" {
            kernels::emulate_on_host()?;
            return Ok(Self { device: Device::Cpu, name: "emulated on the host".into(), copied: 1e9 });
        }
        let device = gpu::device(name)?;
        let Device::Cuda(index) = device else { return Err(format!("{name} is no GPU").into()) };
        let card = gpu::prepare(index)?;
        let name = format!("{}, {:.1} GB", card.name, card.memory_bytes as f64 / 1e9);
        let mut opened = Self { device, name, copied: 0.0 };
        let bytes = 1i64 << 30;
        let tensor = || Tensor::f_randint(256, [bytes], (Kind::Uint8, device));
        let (from, to) = (tensor()?, tensor()?);
        let seconds = opened.timed(20, &mut || {
            to.shallow_clone().f_copy_(&from)?;
            Ok(())
        })?;
        opened.copied = 2.0 * bytes as f64 / seconds;
        Ok(opened)
    }

    pub fn device(&self) -> Device {
        self.device
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes read and written a second by a copy.
    pub fn copied(&self) -> f64 {
        self.copied
    }

    fn wait(&self) {
        if let Device::Cuda(index) = self.device {
            Cuda::synchronize(index as i64);
        }
    }

    /// Seconds of one call; the median of some runs of many.
    fn timed(&self, calls: usize, work: &mut dyn FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
        work()?;
        let mut seconds = Vec::new();
        for _ in 0..REPEATS {
            self.wait();
            let start = Instant::now();
            for _ in 0..calls {
                work()?;
            }
            self.wait();
            seconds.push(start.elapsed().as_secs_f64() / calls as f64);
        }
        Ok(crate::median(seconds))
    }

    /// The products of a layer by themselves, weights from memory.
    pub fn products(&self, shape: &LlamaShape) -> Result<(), Failure> {
        let head_dim = shape.hidden / shape.heads;
        let layers = [
            ("q, k, v", shape.hidden + 2 * shape.kv_heads * head_dim, shape.hidden),
            ("o", shape.hidden, shape.hidden),
            ("gate, up", 2 * shape.feed_forward, shape.hidden),
            ("down", shape.hidden, shape.feed_forward),
        ];
        println!("| product | rows | us | GB/s | of what the card copies |\n| --- | --- | --- | --- | --- |");
        for (name, out, input) in layers {
            let bytes = out * input / 2 + out * input / 64;
            let count = if self.device == Device::Cpu { 1 } else { ROUND_BYTES.div_ceil(bytes) };
            let weights: Vec<_> =
                (0..count).map(|_| self.weight(out as i64, input as i64)).collect::<Result<_, _>>()?;
            for rows in [1i64, 8, 16, 32] {
                let x = Tensor::f_randn([rows, input as i64], (Kind::Float, self.device))?.f_to_kind(Kind::BFloat16)?;
                let y = Tensor::f_empty([rows, out as i64], (Kind::BFloat16, self.device))?;
                let seconds = self.timed(1, &mut || {
                    for weight in &weights {
                        product(&x, &[weight], false, &y)?;
                    }
                    Ok(())
                })? / count as f64;
                let read = bytes as f64 / seconds;
                let (us, share) = (seconds * 1e6, read / self.copied * 100.0);
                println!("| {name}: {out} x {input} | {rows} | {us:.1} | {:.0} | {share:.0} % |", read / 1e9);
            }
        }
        println!();
        Ok(())
    }

    fn weight(&self, out: i64, input: i64) -> Result<DeviceWeight, Failure> {
        let blocks = out * input / 64;
        let floats = |values: &[f32]| Tensor::f_from_slice(values)?.f_to_device(self.device);
        let bytes = |count: i64| Tensor::f_randint(256, [count], (Kind::Uint8, self.device));
        let scales = DeviceScales::Nested {
            codes: bytes(blocks)?,
            map: floats(&dynamic_map())?,
            absmax: Tensor::f_full([(blocks + 255) / 256], 0.05, (Kind::Float, self.device))?,
            block: 256,
            offset: 0.05,
        };
        let (packed, values) = (bytes(out * input / 2)?, floats(&Code::Nf4.values())?);
        let parts = DeviceParts { packed, values, scales, block: 64, dtype: Float::Bf16 };
        Ok(DeviceWeight::from_parts(out, input, &parts)?)
    }
}
