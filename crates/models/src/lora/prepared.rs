//! An adapter on its way to a base: what any thread can do, apart from what only the base's own can.
//!
//! A base belongs to one thread, which makes a step with it whenever somebody waits for an answer. An [`Outline`] says what the
//! base looks like; with it [`Prepared`] checks an adapter and makes its tensors on the host, in the form that steps read, which
//! is nearly all of the work and grows with the adapter. What is left is to copy them to the device. Only an adapter that brings
//! more than factors is also held against the base's weights there: magnitudes, and a head of its own beside factors for it.

use std::sync::Arc;

use half::bf16;
use safetensors::Dtype;
use tailor_peft::{Adapter, BaseShapes, LoraPair, Tensors, WholeTensor};
use tch::{Device, Kind, Tensor};

use super::{Lora, LoraSet, padded_rank};
use crate::base::Steps;
use crate::weights::Site;
use crate::{Base, Compute, Error, LinearInfo, Result};

/// A base as adapters see it, without its weights.
#[derive(Debug, Clone)]
pub struct Outline {
    linears: Arc<[LinearInfo]>,
    sites: Arc<[Site]>,
    shapes: Arc<BaseShapes>,
    compute: Compute,
    /// D: values of a token's embedding.
    width: i64,
    /// Who reads factors, and in which form.
    steps: Steps,
}

/// An adapter that is checked against a base and lies on the host. Any thread may make one and give it to the base's.
#[derive(Debug)]
pub struct Prepared {
    set: LoraSet,
    /// Weights for layers that have factors too.
    beside: Vec<(String, Tensor)>,
    magnitudes: Vec<(String, Tensor)>,
    serves: bool,
}

impl Base {
    /// What [`Prepared`] needs of it.
    pub fn outline(&self) -> Outline {
        let (linears, sites) = self.places();
        Outline {
            linears,
            sites,
            shapes: Arc::new(self.shapes()),
            compute: self.compute(),
            width: self.embedding().size()[1],
            steps: self.steps,
        }
    }
}

impl Prepared {
    /// A, B and what belongs to them in f32, whole tensors in the type that the base computes in.
    ///
    /// # Errors
    /// It does not fit the base, or would change nothing there.
    pub fn new(outline: &Outline, adapter: &Adapter) -> Result<Self> {
        Self::make(outline, adapter, false)
    }

    /// As [`LoraSet::serve`] leaves a set.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn for_serving(outline: &Outline, adapter: &Adapter) -> Result<Self> {
        Self::make(outline, adapter, true)
    }

    fn make(outline: &Outline, adapter: &Adapter, serves: bool) -> Result<Self> {
        adapter.check_against(&outline.shapes).map_err(|error| Error::Adapter(error.to_string()))?;
        let mut set = LoraSet::on(Arc::clone(&outline.linears), Arc::clone(&outline.sites));
        let Tensors { pairs, magnitudes, lora_biases, whole, .. } = adapter.tensors();
        let is_plain = magnitudes.is_empty() && lora_biases.is_empty() && whole.is_empty();
        let rounds = serves && is_plain && outline.steps != Steps::Operators;
        let rounded = if rounds { rounded(pairs.values(), outline.steps) } else { None };
        let is_rounded = rounded.is_some();
        let mut rounded = rounded.into_iter().flatten();
        for (path, pair) in pairs {
            let (rank, input, out) = (pair.rank as i64, pair.in_features as i64, pair.out_features as i64);
            let (a, b) = match rounded.next() {
                Some(factors) => factors.tensors(pair)?,
                None => (values(&pair.a, &[rank, input])?, values(&pair.b, &[out, rank])?),
            };
            set.insert(path, Lora { a, b, scale: adapter.scale_for(path), dropout: 0.0 })?;
        }
        let mut beside = Vec::new();
        for (path, whole) in whole {
            let own = stored(whole, outline.compute)?;
            // PEFT saves the head's weight beside LoRA on it, changed or not: the base's own says which.
            match path.strip_suffix(".weight").is_some_and(|module| pairs.contains_key(module)) {
                true => beside.push((path.clone(), own)),
                false => set.replace(path, own)?,
            }
        }
        let magnitudes = magnitudes.iter().map(|(path, magnitude)| Ok((path.clone(), values(magnitude, &[-1])?)));
        let magnitudes = magnitudes.collect::<Result<Vec<_>>>()?;
        for (path, bias) in lora_biases {
            set.insert_lora_bias(path, values(bias, &[-1])?)?;
        }
        if let Some((tokens, embeddings)) = adapter.prompt() {
            set.put_prompt(outline.width, values(embeddings, &[tokens as i64, -1])?)?;
        }
        if is_rounded {
            set.mark_served();
        }
        Ok(Self { set, beside, magnitudes, serves })
    }

    /// Puts it on the base's device, on the base's thread.
    ///
    /// # Errors
    /// It would change nothing, or something that it must not; no memory.
    pub fn install(self, base: &Base) -> Result<LoraSet> {
        let Self { set, beside, magnitudes, serves } = self;
        let mut set = set.moved(base.device())?;
        if beside.is_empty() && magnitudes.is_empty() {
            return Ok(set);
        }
        for (path, own) in beside {
            let own = own.f_to_device(base.device())?;
            if base.has_weight(&path, &own)? {
                continue;
            }
            if base.is_tied() {
                let problem = "differs from the base's, which is its embedding as well; PEFT would change both";
                return Err(Error::Adapter(format!("{path} {problem}")));
            }
            set.replace(&path, own)?;
        }
        for (path, magnitude) in magnitudes {
            set.insert_magnitude(base, &path, magnitude.f_to_device(base.device())?)?;
        }
        if set.changes_nothing() {
            let problem = "the adapter changes nothing: its magnitudes are the lengths of the base's own rows; it was \
                           saved before it was trained";
            return Err(Error::Adapter(problem.into()));
        }
        if serves {
            set.serve(base)?;
        }
        Ok(set)
    }
}

impl LoraSet {
    /// The same set on `device`, before it has any magnitude.
    fn moved(mut self, device: Device) -> Result<Self> {
        if device == Device::Cpu {
            return Ok(self);
        }
        let is_served = self.is_served();
        for change in self.changes.iter_mut().flatten() {
            if let Some(lora) = &mut change.lora {
                let rank = lora.rank();
                lora.a = lora.a.f_to_device(device)?;
                lora.b = match is_served {
                    // A copy of the view alone would leave the padding behind.
                    true => with_padding(&lora.b, rank)?.f_to_device(device)?.f_narrow(1, 0, rank)?,
                    false => lora.b.f_to_device(device)?,
                };
            }
            for tensor in [&mut change.lora_bias, &mut change.weight, &mut change.bias].into_iter().flatten() {
                *tensor = tensor.f_to_device(device)?;
            }
        }
        for tensor in self.whole.iter_mut().flatten().chain(&mut self.prompt) {
            *tensor = tensor.f_to_device(device)?;
        }
        Ok(self)
    }
}

/// `b` [out, R], a view of [out, padded R] → that.
fn with_padding(b: &Tensor, rank: i64) -> Result<Tensor> {
    let padded = padded_rank(rank);
    Ok(b.f_as_strided([b.size()[0], padded].as_slice(), [padded, 1].as_slice(), 0i64)?)
}

/// A pair's factors as the bytes of bf16 values.
struct Rounded {
    a: Vec<u8>, // [R, in]
    b: Vec<u8>, // [out, padded R] for a device, [R, out] for a CPU
    for_device: bool,
}

impl Rounded {
    /// None where bf16 does not reach a value.
    fn of(pair: &LoraPair, steps: Steps) -> Option<Self> {
        let (rank, out) = (pair.rank, pair.out_features);
        let mut a = Vec::with_capacity(size_of::<bf16>() * pair.a.len());
        round(&pair.a, &mut a)?;
        let for_device = steps == Steps::OnDevice;
        let b = if for_device {
            let padded = padded_rank(rank as i64) as usize;
            let padding = vec![0; size_of::<bf16>() * (padded - rank)];
            let mut b = Vec::with_capacity(size_of::<bf16>() * out * padded);
            for row in pair.b.chunks_exact(rank.max(1)) {
                round(row, &mut b)?;
                b.extend_from_slice(&padding);
            }
            b
        } else {
            let mut b = Vec::with_capacity(size_of::<bf16>() * pair.b.len());
            for at in 0..rank {
                round(pair.b.iter().skip(at).step_by(rank), &mut b)?;
            }
            b
        };
        Some(Self { a, b, for_device })
    }

    /// A [R, in] and B [out, R], a view of what there is.
    fn tensors(self, pair: &LoraPair) -> Result<(Tensor, Tensor)> {
        let (rank, input, out) = (pair.rank as i64, pair.in_features as i64, pair.out_features as i64);
        let a = Tensor::f_from_data_size(&self.a, &[rank, input], Kind::BFloat16)?;
        let b = if self.for_device {
            Tensor::f_from_data_size(&self.b, &[out, padded_rank(rank)], Kind::BFloat16)?.f_narrow(1, 0, rank)?
        } else {
            Tensor::f_from_data_size(&self.b, &[rank, out], Kind::BFloat16)?.f_transpose(0, 1)?
        };
        Ok((a, b))
    }
}

/// All pairs or none: a set is served in one form. By plain loops, since libtorch's operators would take a second team of
/// threads beside the one that is in the middle of a step.
fn rounded<'a>(pairs: impl Iterator<Item = &'a LoraPair>, steps: Steps) -> Option<Vec<Rounded>> {
    pairs.map(|pair| Rounded::of(pair, steps)).collect()
}

/// To the nearest, ties to even, as libtorch does.
fn round<'a>(values: impl IntoIterator<Item = &'a f32>, bytes: &mut Vec<u8>) -> Option<()> {
    for value in values {
        let narrow = bf16::from_f32(*value);
        if !narrow.is_finite() {
            return None;
        }
        bytes.extend_from_slice(&narrow.to_ne_bytes());
    }
    Some(())
}

fn values(values: &[f32], shape: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(values)?.f_view(shape)?)
}

fn stored(whole: &WholeTensor, compute: Compute) -> Result<Tensor> {
    let kind = match whole.dtype {
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        _ => Kind::Float,
    };
    let shape: Vec<i64> = whole.shape.iter().map(|side| *side as i64).collect();
    Ok(Tensor::f_from_data_size(&whole.bytes, &shape, kind)?.f_to_kind(compute.kind())?)
}
