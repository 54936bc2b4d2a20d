//! The same on a GPU: larger, so that launching kernels is a small part of what is timed. Has not been run on one.

use tailor_models::{Base, Compute, LoadOptions};
use tailor_plan::Device as Place;
use tailor_torch::gpu;
use tch::{Cuda, Device, Kind, Tensor};

use super::{Sizes, fastest};

pub const SIZES: Sizes = Sizes {
    config: r#"{"model_type":"llama","hidden_size":4096,"num_hidden_layers":2,"intermediate_size":14336,
"num_attention_heads":32,"num_key_value_heads":8,"vocab_size":2048,"max_position_embeddings":4096}"#,
    tokens: 4096,
};
const LAYER: &str = "model.layers.0.mlp.gate_proj";

/// The GPU as a plan names it.
///
/// # Errors
/// As [`gpu::prepare`].
pub fn place(index: usize) -> tailor_torch::Result<Place> {
    let card = gpu::prepare(index)?;
    Ok(Place::gpu(&card.name, card.memory_bytes))
}

/// Random 4-bit weights; they never were on a disk.
pub fn base(index: usize, compute: Compute) -> tailor_models::Result<Base> {
    let load = LoadOptions { compute, device: Device::Cuda(index) };
    Base::random_four_bit(SIZES.config.as_bytes(), &load, 0)
}

/// FLOP a second of a layer's products, forward and backward, as [`super::product`].
pub fn product(index: usize, kind: Kind) -> tailor_models::Result<f64> {
    let (tokens, input, out) = (SIZES.tokens as i64, 4096, 14336);
    let random = |rows: i64, columns: i64| Tensor::f_randn([rows, columns], (kind, Device::Cuda(index)));
    let (x, weight, gradient) = (random(tokens, input)?, random(out, input)?, random(tokens, out)?);
    let seconds = fastest(|| {
        let products = [x.matmul(&weight.tr()), gradient.matmul(&weight)];
        Cuda::synchronize(index as i64);
        drop(products);
    });
    Ok(4.0 * tokens as f64 * (input * out) as f64 / seconds)
}

/// Values a second.
pub fn dequantised(index: usize, base: &Base) -> tailor_models::Result<f64> {
    let missing = || tailor_models::Error::Request(format!("the base has no {LAYER}"));
    let values = base.dense_weight(LAYER).ok_or_else(missing)?.numel();
    let seconds = fastest(|| {
        let weight = base.dense_weight(LAYER);
        Cuda::synchronize(index as i64);
        drop(weight);
    });
    Ok(values as f64 / seconds)
}
