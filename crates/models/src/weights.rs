//! Where parameters come from: a mapped checkpoint, or a seeded generator. Names are checkpoint keys.

use std::collections::BTreeSet;

use safetensors::Dtype;
use tailor_quant::Checkpoint;
use tailor_torch::QuantWeight;
use tailor_torch::device::{DeviceWeight, has_kernels_on};
use tch::{Device, Kind, Tensor};

use crate::linear::{Compute, Linear, LinearInfo, Weight};
use crate::norm::{NormScale, RmsNorm};
use crate::random::RandomFourBit;
use crate::{Error, Result};

/// A dense tensor of the base under its checkpoint key.
#[derive(Debug)]
pub struct Parameter {
    pub name: String,
    pub tensor: Tensor,
}

/// A tensor outside the linear layers and the head, which an adapter may bring its own of.
pub(crate) struct Dense {
    pub tensor: Tensor,
    /// Place in the base's list of sites: where a [`crate::LoraSet`] keeps what stands in this one's place.
    pub site: usize,
}

/// Where a model uses such a tensor: T5's embedding has two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    /// The parameter's path, as PEFT sees it.
    pub path: String,
    pub shape: Vec<i64>,
}

/// Hands out parameters to the models and keeps account of them.
pub(crate) struct Builder<'a> {
    source: Source<'a>,
    compute: Compute,
    device: Device,
    /// Asked before each tensor.
    should_stop: &'a dyn Fn() -> bool,
    pub parameters: Vec<Parameter>,
    pub linears: Vec<LinearInfo>,
    /// Those of the linear layers, in their order.
    pub weights: Vec<Weight>,
    pub sites: Vec<Site>,
    pub quantized_bytes: usize,
    pub quantized_parameters: u64,
    used: BTreeSet<String>,
}

pub(crate) enum Source<'a> {
    Checkpoint(&'a Checkpoint),
    /// libtorch's generator, seeded by the caller.
    Random,
    /// The same, linear layers in 4 bits and nothing to be trained.
    RandomFourBit,
}

impl<'a> Builder<'a> {
    pub fn new(source: Source<'a>, compute: Compute, device: Device, should_stop: &'a dyn Fn() -> bool) -> Self {
        Self {
            source,
            compute,
            device,
            should_stop,
            parameters: Vec::new(),
            linears: Vec::new(),
            weights: Vec::new(),
            sites: Vec::new(),
            quantized_bytes: 0,
            quantized_parameters: 0,
            used: BTreeSet::new(),
        }
    }

    pub fn device(&self) -> Device {
        self.device
    }

    pub fn is_random(&self) -> bool {
        matches!(self.source, Source::Random | Source::RandomFourBit)
    }

    pub fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Checkpoint(checkpoint) => checkpoint.contains(name),
            Source::Random | Source::RandomFourBit => true,
        }
    }

    /// A dense tensor; when new, normal with this deviation.
    pub fn normal(&mut self, name: &str, shape: &[i64], std: f64) -> Result<Tensor> {
        self.dense(name, shape, |options| Tensor::randn(shape, options) * std)
    }

    /// A tensor as it is used at `path`, whatever the checkpoint calls it.
    pub fn at(&mut self, path: &str, tensor: &Tensor) -> Dense {
        self.sites.push(Site { path: path.to_owned(), shape: tensor.size() });
        Dense { tensor: tensor.shallow_clone(), site: self.sites.len() - 1 }
    }

    /// A norm; when new, one that leaves the scale alone.
    pub fn norm(&mut self, path: &str, size: i64, eps: f64, scale: NormScale) -> Result<RmsNorm> {
        let name = format!("{path}.weight");
        let weight = self.dense(&name, &[size], |options| match scale {
            NormScale::Weight => Tensor::ones([size], options),
            NormScale::OnePlusWeight => Tensor::zeros([size], options),
        })?;
        Ok(RmsNorm { weight: self.at(&name, &weight), eps, scale })
    }

    /// A linear layer that can take LoRA: in 4 bits if the checkpoint has it so.
    pub fn linear(&mut self, path: &str, input: i64, out: i64, bias: bool, std: f64) -> Result<Linear> {
        let name = format!("{path}.weight");
        let weight = match self.four_bit(&name, input, out, std)? {
            Some(weight) => weight,
            None => Weight::Dense(self.normal(&name, &[out, input], std)?),
        };
        let bias = match bias {
            true => Some(self.dense(&format!("{path}.bias"), &[out], |options| Tensor::zeros([out], options))?),
            false => None,
        };
        let slot = self.linears.len();
        let quantized = !matches!(weight, Weight::Dense(_));
        self.weights.push(weight.share());
        self.linears.push(LinearInfo { path: path.to_owned(), in_features: input, out_features: out, quantized });
        Ok(Linear { weight, bias, slot })
    }

    /// The head over `tensor` [V, D], built last of all layers.
    pub fn head(&mut self, path: &str, tensor: Tensor) -> Linear {
        let (slot, size) = (self.linears.len(), tensor.size());
        let info = LinearInfo { path: path.to_owned(), in_features: size[1], out_features: size[0], quantized: false };
        let weight = Weight::Dense(tensor);
        self.linears.push(info);
        self.weights.push(weight.share());
        Linear { weight, bias: None, slot }
    }

    fn go_on(&self) -> Result<()> {
        if (self.should_stop)() { Err(Error::Stopped) } else { Ok(()) }
    }

    fn four_bit(&mut self, name: &str, input: i64, out: i64, std: f64) -> Result<Option<Weight>> {
        self.go_on()?;
        let weight = match &self.source {
            Source::Random => return Ok(None),
            Source::Checkpoint(checkpoint) => checkpoint.quantized(name)?,
            Source::RandomFourBit => {
                let random = RandomFourBit { out, input, std, dtype: self.compute.float() };
                let weight = random.make(self.device)?;
                self.quantized_bytes += random.bytes();
                self.quantized_parameters += (out * input) as u64;
                return Ok(Some(weight));
            }
        };
        let Some(weight) = weight else { return Ok(None) };
        if weight.shape() != [out as usize, input as usize] {
            let problem = format!("4-bit shape {:?}; config.json needs [{out}, {input}]", weight.shape());
            return Err(Error::tensor(name, problem));
        }
        self.used.insert(name.to_owned());
        self.quantized_bytes += weight.resident_bytes();
        self.quantized_parameters += weight.elements() as u64;
        if has_kernels_on(self.device) {
            let on_device = DeviceWeight::new(&weight, self.device)?;
            weight.packed().evict();
            return Ok(Some(Weight::OnDevice(on_device)));
        }
        Ok(QuantWeight::new(weight).map(Weight::FourBit))
    }

    fn dense(&mut self, name: &str, shape: &[i64], new: impl FnOnce((Kind, Device)) -> Tensor) -> Result<Tensor> {
        self.go_on()?;
        let tensor = match &self.source {
            Source::Random => new((Kind::Float, self.device)).set_requires_grad(true),
            Source::RandomFourBit => new((self.compute.kind(), self.device)),
            Source::Checkpoint(checkpoint) => {
                let stored = checkpoint.tensor(name)?;
                if !stored.shape.iter().map(|&side| side as i64).eq(shape.iter().copied()) {
                    let problem = format!("shape {:?}; config.json needs {shape:?}", stored.shape);
                    return Err(Error::tensor(name, problem));
                }
                let kind = match stored.dtype {
                    Dtype::F32 => Kind::Float,
                    Dtype::BF16 => Kind::BFloat16,
                    Dtype::F16 => Kind::Half,
                    other => return Err(Error::tensor(name, format!("type {other:?}; F32, BF16 or F16 is needed"))),
                };
                if let Some(at) = stored.float().and_then(|float| float.first_not_finite(&stored.bytes)) {
                    let problem = format!("value {at} is not finite; no answer of this model would be");
                    return Err(Error::tensor(name, problem));
                }
                let tensor = converted(&stored.bytes, shape, kind, self.compute.kind())?;
                stored.bytes.evict();
                tensor.f_to_device(self.device)?
            }
        };
        self.used.insert(name.to_owned());
        self.parameters.push(Parameter { name: name.to_owned(), tensor: tensor.shallow_clone() });
        Ok(tensor)
    }

    /// A tensor of the checkpoint that the config has no place for, if any: running without it would give other results.
    pub fn unused(&self) -> Option<String> {
        let Source::Checkpoint(checkpoint) = &self.source else { return None };
        let known = |name: &str| {
            let weight = name.split_once(".weight.").map(|(module, _)| format!("{module}.weight"));
            self.used.contains(weight.as_deref().unwrap_or(name)) || is_redundant(name)
        };
        checkpoint.names().find(|name| !known(name)).map(str::to_owned)
    }
}

/// The tensor in the type to compute in, made from its bytes a piece at a time: of a large embedding there is never a second
/// copy.
fn converted(bytes: &[u8], shape: &[i64], stored: Kind, wanted: Kind) -> Result<Tensor> {
    const PIECE: usize = 1 << 20; // values
    let size = stored.elt_size_in_bytes();
    let whole = Tensor::f_empty(shape, (wanted, Device::Cpu))?;
    let flat = whole.f_view([-1])?;
    for (i, piece) in bytes.chunks(PIECE * size).enumerate() {
        let length = (piece.len() / size) as i64;
        let piece = Tensor::f_from_data_size(piece, &[length], stored)?;
        flat.f_narrow(0, (i * PIECE) as i64, length)?.f_copy_(&piece)?;
    }
    Ok(whole)
}

/// Copies of tied tensors and buffers that old checkpoints carry.
fn is_redundant(name: &str) -> bool {
    matches!(name, "lm_head.weight" | "encoder.embed_tokens.weight" | "decoder.embed_tokens.weight")
        || name.ends_with(".rotary_emb.inv_freq")
        || name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
}
