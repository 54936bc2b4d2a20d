//! A base model: loaded in 4 bits or dense, or made at random to be trained from scratch.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tailor_domain::Family;
use tailor_quant::Checkpoint;
use tch::{Device, Kind, Tensor};

use crate::chain::Chain;
use crate::decoder::Decoder;
use crate::linear::{Compute, LinearInfo, Weight};
use crate::pass::Pass;
use crate::prompt::Roomy;
use crate::t5::T5;
use crate::weights::{Builder, Parameter, Site, Source};
use crate::{Config, Error, Result};

const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// How to load.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    pub compute: Compute,
    pub device: Device,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { compute: Compute::F32, device: Device::Cpu }
    }
}

/// Whole sequences in.
pub enum Input<'a> {
    /// `ids` and `mask` [B, T]. The mask (i64) is 0 where a token is padding, else the number of the text it belongs to:
    /// 1 everywhere, or 1, 2, … where several texts are packed into one sequence. A token sees only its own text and is
    /// counted from its beginning. Without a mask every row is one text without padding.
    Decoder { ids: &'a Tensor, mask: Option<&'a Tensor> },
    /// `ids` and `mask` [B, Se], `decoder_ids` [B, T] beginning with the start token; padding on the right.
    EncoderDecoder { ids: &'a Tensor, mask: Option<&'a Tensor>, decoder_ids: &'a Tensor },
}

/// Hidden states whose layers keep no more than their pass says ([`crate::Keeps`]).
pub struct Layered<'a> {
    /// [B, T, D]; its own history goes back to the last layer's output and no further.
    pub hidden: Tensor,
    chain: Chain<'a>,
    /// The encoder's blocks, its states, and these again as the leaf that the decoder takes them from.
    encoder: Option<(Chain<'a>, Tensor, Tensor)>,
}

impl Layered<'_> {
    /// Goes on where the backward pass of [`Self::hidden`] ended, through all layers.
    ///
    /// # Errors
    /// `hidden` has had no backward pass; libtorch failed.
    pub fn backward(self) -> Result<()> {
        let Self { hidden, chain, encoder } = self;
        drop(hidden);
        chain.backward()?;
        if let Some((encoder, states, leaf)) = encoder {
            tailor_torch::backward(&[(&states, Some(&leaf.f_grad()?))], false)?;
            encoder.backward()?;
        }
        Ok(())
    }
}

pub(crate) enum Model {
    Decoder(Decoder),
    T5(T5),
}

/// How the steps of serving go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steps {
    Operators,
    /// On a CPU ([`crate::fused`]).
    Fused,
    /// Where kernels are ([`crate::device_step`]).
    OnDevice,
}

/// A model with frozen weights (loaded) or trainable ones (random).
pub struct Base {
    config: Config,
    pub(crate) config_text: Vec<u8>,
    pub(crate) model: Model,
    compute: Compute,
    device: Device,
    /// How steps of serving go past the operators.
    pub(crate) steps: Steps,
    /// Every linear layer, the head last.
    linears: Arc<[LinearInfo]>,
    /// Of the linear layers, in their order.
    weights: Vec<Weight>,
    sites: Arc<[Site]>,
    pub(crate) parameters: Vec<Parameter>,
    quantized_bytes: usize,
    quantized_parameters: u64,
}

impl Config {
    /// The config of a base's folder.
    ///
    /// # Errors
    /// None that is supported, by field; a file that cannot be read.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        Ok(read_config(folder)?.0)
    }
}

impl Base {
    /// Loads a folder in bitsandbytes' layout (packed weights stay in the map) or a plain one. Nothing requires a
    /// gradient.
    ///
    /// # Errors
    /// A config that is not supported, by field, before any weight is read; a tensor that is missing, not expected, or
    /// of a shape or type that does not fit.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self> {
        Self::load_unless(folder, options, &|| false)
    }

    /// As [`Base::load`], asking before each tensor whether anybody waits for it yet: a large base takes minutes to come to a
    /// device.
    ///
    /// # Errors
    /// [`Error::Stopped`] once `should_stop` says so; as [`Base::load`].
    pub fn load_unless(folder: &Path, options: &LoadOptions, should_stop: &dyn Fn() -> bool) -> Result<Self> {
        let (config, text) = read_config(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        Self::build(config, text, Source::Checkpoint(&checkpoint), *options, should_stop)
    }

    /// A new model: every parameter dense, f32, initialised as the family's papers do, requiring a gradient. Seeds
    /// libtorch's generator.
    ///
    /// # Errors
    /// A config that is not supported, by field.
    pub fn random(config_json: &[u8], device: Device, seed: i64) -> Result<Self> {
        let config = Config::parse(config_json)?;
        tch::manual_seed(seed);
        let options = LoadOptions { compute: Compute::F32, device };
        Self::build(config, config_json.to_vec(), Source::Random, options, &|| false)
    }

    /// Random 4-bit weights (NF4 with double quantisation) made on the device, everything else dense in the compute type;
    /// nothing requires a gradient. For measuring: of a shape that no disk need hold. Seeds libtorch's generator.
    ///
    /// # Errors
    /// A config that is not supported, by field; no memory.
    pub fn random_four_bit(config_json: &[u8], options: &LoadOptions, seed: i64) -> Result<Self> {
        let config = Config::parse(config_json)?;
        tch::manual_seed(seed);
        Self::build(config, config_json.to_vec(), Source::RandomFourBit, *options, &|| false)
    }

    fn build(
        config: Config,
        config_text: Vec<u8>,
        source: Source<'_>,
        options: LoadOptions,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<Self> {
        tailor_torch::use_pool();
        if let Device::Cuda(index) = options.device {
            tailor_torch::gpu::prepare(index)?;
        }
        let mut builder = Builder::new(source, options.compute, options.device, should_stop);
        let model = match &config {
            Config::Decoder(config) => Model::Decoder(Decoder::build(config, &mut builder)?),
            Config::T5(config) => Model::T5(T5::build(config, &mut builder)?),
        };
        if let Some(name) = builder.unused() {
            return Err(Error::tensor(&name, "is in the checkpoint, but config.json describes no place for it"));
        }
        let steps = match &model {
            Model::Decoder(decoder) if crate::fused::fits(decoder) => Steps::Fused,
            Model::Decoder(decoder) if crate::device_step::fits(decoder) => Steps::OnDevice,
            Model::Decoder(_) | Model::T5(_) => Steps::Operators,
        };
        Ok(Self {
            config,
            config_text,
            steps,
            model,
            compute: options.compute,
            device: options.device,
            linears: builder.linears.into(),
            weights: builder.weights,
            sites: builder.sites.into(),
            parameters: builder.parameters,
            quantized_bytes: builder.quantized_bytes,
            quantized_parameters: builder.quantized_parameters,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// config.json as it was read.
    pub fn config_text(&self) -> &[u8] {
        &self.config_text
    }

    pub fn family(&self) -> Family {
        self.config.family()
    }

    pub fn compute(&self) -> Compute {
        self.compute
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// Makes ready for serving what need not be there for anything else. On a CPU a step reads every byte of a decoder's head: it
    /// is kept in three quarters of them without any loss ([`CompactBf16`]), and in a quarter, which is enough to find the
    /// largest logit ([`Screen`]).
    ///
    /// [`CompactBf16`]: tailor_quant::CompactBf16
    /// [`Screen`]: tailor_quant::Screen
    pub fn prepare_to_serve(&mut self) {
        if let Model::Decoder(decoder) = &mut self.model
            && self.steps == Steps::Fused
        {
            decoder.compact_head = crate::fused::compact_head(decoder);
            decoder.head_screen = crate::fused::head_screen(decoder).map(Box::new);
        }
    }

    /// Bytes that [`Self::prepare_to_serve`] makes at most, as far as a config tells.
    pub fn prepared_demand(config: &Config, options: &LoadOptions) -> u64 {
        let here = options.device == Device::Cpu && options.compute == Compute::Bf16;
        let Config::Decoder(decoder) = config else { return 0 };
        let values = (decoder.vocab_size * decoder.hidden_size) as u64;
        let compact = if here && tailor_quant::CompactBf16::is_taken() { values * 3 / 2 } else { 0 };
        // Its scales are at most one in f32 for 64 values.
        let screen = if here && tailor_quant::Screen::is_taken() { values / 2 + values / 16 } else { 0 };
        compact + screen
    }

    /// Bytes of what [`Self::prepare_to_serve`] has made.
    pub fn prepared_bytes(&self) -> usize {
        let Model::Decoder(decoder) = &self.model else { return 0 };
        let screen = decoder.head_screen.as_ref().map_or(0, |screen| screen.size_bytes());
        decoder.compact_head.as_ref().map_or(0, |head| head.size_bytes()) + screen
    }

    /// Bytes of the head that a step reads for whole logits, and where the largest alone is wanted.
    pub fn head_bytes(&self) -> (usize, usize) {
        let Model::Decoder(decoder) = &self.model else { return (0, 0) };
        let whole = match (&decoder.compact_head, &decoder.lm_head.weight) {
            (Some(compact), _) => compact.size_bytes(),
            (None, Weight::Dense(weight)) => weight.numel() * weight.kind().elt_size_in_bytes(),
            (None, Weight::FourBit(_) | Weight::OnDevice(_)) => 0, // no head is in 4 bits
        };
        (whole, decoder.head_screen.as_ref().map_or(whole, |screen| screen.size_bytes()))
    }

    /// Every linear layer but the head: what PEFT's `all-linear` targets.
    pub fn linears(&self) -> &[LinearInfo] {
        self.linears.split_last().map_or(&[], |(_, linears)| linears)
    }

    /// Every linear layer, the head last.
    pub fn linears_with_head(&self) -> &[LinearInfo] {
        &self.linears
    }

    /// The weight of the linear layer at `path` in f32 [out, in].
    pub fn dense_weight(&self, path: &str) -> Option<Tensor> {
        let slot = self.linears.iter().position(|linear| linear.path == path)?;
        Some(match &self.weights[slot] {
            Weight::Dense(weight) => weight.to_kind(Kind::Float),
            Weight::FourBit(weight) => weight.dequantize().to_device(self.device),
            Weight::OnDevice(weight) => weight.dequantize().unwrap_or_else(|error| panic!("{error}")),
        })
    }

    /// Whether a step of serving ([`Base::advance`]) goes past libtorch's operators: a decoder in bf16 on a CPU that has AVX2.
    pub fn is_fused(&self) -> bool {
        self.steps != Steps::Operators
    }

    /// What an adapter can change: the linear layers with the head, and where other tensors are used.
    pub(crate) fn places(&self) -> (Arc<[LinearInfo]>, Arc<[Site]>) {
        (Arc::clone(&self.linears), Arc::clone(&self.sites))
    }

    /// The weight of the linear layer in this place.
    pub(crate) fn weight(&self, slot: usize) -> &Weight {
        &self.weights[slot]
    }

    /// The embedding of the input's tokens [V, D].
    pub(crate) fn embedding(&self) -> &Tensor {
        match &self.model {
            Model::Decoder(decoder) => decoder.embedding(),
            Model::T5(t5) => t5.embedding(),
        }
    }

    /// D: values of a token's embedding.
    pub fn embedding_size(&self) -> usize {
        self.embedding().size()[1] as usize
    }

    /// What the first layer gets of these tokens, scaled where the architecture does so.
    ///
    /// # Shapes
    /// `tokens`: n below the vocabulary's size → [n, D] in f32
    ///
    /// # Errors
    /// A token that the model does not have.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        self.check_tokens(tokens)?;
        let ids: Vec<i64> = tokens.iter().map(|&id| id as i64).collect();
        let ids = Tensor::from_slice(&ids).to_device(self.device).unsqueeze(0); // [1, n]
        let x = match &self.model {
            Model::Decoder(decoder) => decoder.embed(&ids, None, &Pass::base()),
            Model::T5(t5) => t5.embed(&ids, None, &Pass::base()),
        };
        Ok(x.squeeze_dim(0).to_kind(Kind::Float))
    }

    /// The dense tensors; a tied head is the embedding and comes once.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// All parameters, those in 4 bits included.
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().map(|p| p.tensor.numel() as u64).sum::<u64>() + self.quantized_parameters
    }

    /// Bytes of all weights, packed ones in the map included, and of what was prepared.
    pub fn resident_bytes(&self) -> usize {
        let dense = |p: &Parameter| p.tensor.numel() * p.tensor.kind().elt_size_in_bytes();
        self.parameters.iter().map(dense).sum::<usize>() + self.quantized_bytes + self.prepared_bytes()
    }

    /// Hidden states before the head, at every position of the sequence that is predicted from.
    ///
    /// # Shapes
    /// → [B, T, D] in the compute type
    ///
    /// # Errors
    /// The input is of the other family.
    pub fn hidden(&self, input: &Input<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        match (&self.model, input) {
            (Model::Decoder(decoder), Input::Decoder { ids, mask }) => {
                let Roomy { ids, mask, prompts, room } = pass.with_room(ids, *mask)?;
                let hidden = decoder.hidden(&ids, mask.as_ref(), prompts.as_ref(), None, pass);
                Ok(without_room(hidden, room))
            }
            (Model::T5(t5), Input::EncoderDecoder { ids, mask, decoder_ids }) => {
                let Roomy { ids, mask, prompts, .. } = pass.with_room(ids, *mask)?;
                Ok(t5.hidden(&ids, mask.as_ref(), decoder_ids, prompts.as_ref(), pass))
            }
            _ => Err(Error::Request(format!("input does not fit a model of type {}", self.config.model_type()))),
        }
    }

    /// As [`Base::hidden`], keeping of each layer no more than the pass says: [`Layered::backward`] runs the layers again.
    ///
    /// # Errors
    /// The input is of the other family; libtorch failed.
    pub fn hidden_layered<'a>(&'a self, input: &Input<'_>, pass: &'a Pass<'a>) -> Result<Layered<'a>> {
        match (&self.model, input) {
            (Model::Decoder(decoder), Input::Decoder { ids, mask }) => {
                let Roomy { ids, mask, prompts, room } = pass.with_room(ids, *mask)?;
                let chain = decoder.chain(&ids, mask.as_ref(), prompts.as_ref(), pass)?;
                let hidden = without_room(decoder.finish(&chain.last, pass), room);
                Ok(Layered { hidden, chain, encoder: None })
            }
            (Model::T5(t5), Input::EncoderDecoder { ids, mask, decoder_ids }) => {
                let Roomy { ids, mask, prompts, .. } = pass.with_room(ids, *mask)?;
                let encoder = t5.encoder_chain(&ids, mask.as_ref(), prompts.as_ref(), pass)?;
                let states = t5.finish_encoder(&encoder.last, pass);
                let leaf = states.f_detach()?.f_set_requires_grad(true)?;
                let chain = t5.decoder_chain(decoder_ids, &leaf, mask.as_ref(), pass)?;
                Ok(Layered {
                    hidden: t5.finish_decoder(&chain.last, pass),
                    chain,
                    encoder: Some((encoder, states, leaf)),
                })
            }
            _ => Err(Error::Request(format!("input does not fit a model of type {}", self.config.model_type()))),
        }
    }

    /// # Shapes
    /// `hidden` [.., D], with an adapter for each row [B, .., D] → logits [.., V] in f32
    pub fn head(&self, hidden: &Tensor, pass: &Pass<'_>) -> Tensor {
        self.head_as_computed(hidden, pass).to_kind(Kind::Float)
    }

    /// As [`Base::head`] in the type that the head computes in.
    pub fn head_as_computed(&self, hidden: &Tensor, pass: &Pass<'_>) -> Tensor {
        match &self.model {
            Model::Decoder(decoder) => decoder.head(hidden, pass),
            Model::T5(t5) => t5.head(hidden, pass),
        }
    }

    /// The head's weight [V, D], where [`Base::head`] is no more than its product with the states and none of it is
    /// trained: then a loss may take it as a constant ([`tailor_torch::cross_entropy`]).
    pub fn constant_head(&self, pass: &Pass<'_>) -> Option<&Tensor> {
        let (head, capped) = match &self.model {
            Model::Decoder(decoder) => (decoder.output(), decoder.is_capped()),
            Model::T5(t5) => (t5.output(), false),
        };
        head.constant_weight(pass).filter(|weight| !capped && tailor_torch::fused(weight))
    }
}

fn read_config(folder: &Path) -> Result<(Config, Vec<u8>)> {
    let path = folder.join("config.json");
    let found = fs::metadata(&path).map_err(Error::io(&path))?;
    if !found.is_file() {
        return Err(Error::config("(file)", "is no regular file")); // a pipe would be waited for
    }
    let size = found.len();
    if size > MAX_CONFIG_BYTES {
        return Err(Error::config("(file)", format!("{size} bytes; the limit is {MAX_CONFIG_BYTES}")));
    }
    let text = fs::read(&path).map_err(Error::io(&path))?;
    Ok((Config::parse(&text)?, text))
}

/// The hidden states of the input itself: [B, P + T, D] → [B, T, D]
fn without_room(hidden: Tensor, room: i64) -> Tensor {
    if room == 0 { hidden } else { hidden.narrow(1, room, hidden.size()[1] - room) }
}
