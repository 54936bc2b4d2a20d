//! LoRA, arXiv 2106.09685 eq. 3: h = W0·x + s·B·A·x, with s = α/r. A and B in f32 whatever the base computes in.
//!
//! A set is not part of the base. A pass names the set it runs with, or one set for each row of the batch, so attaching,
//! detaching and mixing need no change of the model. Beside A and B a set may hold what else PEFT trains with them:
//! magnitudes (DoRA), biases, and whole tensors in the place of the base's; or, with prompt tuning, virtual tokens alone.

mod prepared;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;
use tailor_quant::LowRank;
use tch::{Kind, Tensor};

use crate::base::Steps;
use crate::change::{Change, Dora};
use crate::linear::Weight;
use crate::weights::Site;
use crate::{Base, Error, LinearInfo, Result};

pub use prepared::{Outline, Prepared};

static SERVED: AtomicU64 = AtomicU64::new(1);

/// Both factors for one linear layer.
#[derive(Debug)]
pub struct Lora {
    pub a: Tensor, // [R, in]
    pub b: Tensor, // [out, R]
    /// α/r, or α/√r with rank stabilisation.
    pub scale: f64,
    /// Share of the inputs left out in training.
    pub dropout: f64,
}

impl Lora {
    pub fn rank(&self) -> i64 {
        self.a.size()[0]
    }

    /// `y` [.., out] and `x` [.., in] → [.., out]
    pub(crate) fn add_to(&self, y: &Tensor, x: &Tensor, training: bool) -> Tensor {
        let x = self.dropped(x, training);
        tailor_torch::lora(y, &x, &self.a, &self.b, self.scale).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Self::add_to`] on what `plain` gives, which is nobody else's.
    pub(crate) fn add_on(&self, plain: impl FnOnce() -> Tensor, x: &Tensor, training: bool) -> Tensor {
        let x = self.dropped(x, training);
        tailor_torch::lora_on(plain, &x, &self.a, &self.b, self.scale).unwrap_or_else(|error| panic!("{error}"))
    }

    fn dropped(&self, x: &Tensor, training: bool) -> Tensor {
        if training && self.dropout > 0.0 { x.dropout(self.dropout, true) } else { x.shallow_clone() }
    }
}

/// How a new set begins.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraInit {
    pub rank: i64,
    pub alpha: f64,
    pub dropout: f64,
    /// Endings of module paths, as in PEFT (`q_proj`); empty means every linear layer but the head.
    pub targets: Vec<String>,
}

/// What one adapter changes, by the linear layers and the other tensors of one base.
#[derive(Debug)]
pub struct LoraSet {
    linears: Arc<[LinearInfo]>,
    changes: Vec<Option<Change>>,
    sites: Arc<[Site]>,
    whole: Vec<Option<Tensor>>,
    prompt: Option<Tensor>, // [P, D] f32
    /// Where all factors are as serving reads them, and there is nothing else, the number that this form of them has.
    served: Option<u64>,
}

impl LoraSet {
    pub fn empty(base: &Base) -> Self {
        let (linears, sites) = base.places();
        Self::on(linears, sites)
    }

    fn on(linears: Arc<[LinearInfo]>, sites: Arc<[Site]>) -> Self {
        let changes = linears.iter().map(|_| None).collect();
        let whole = sites.iter().map(|_| None).collect();
        Self { linears, changes, sites, whole, prompt: None, served: None }
    }

    /// A set to be trained: A uniform as PEFT's kaiming_uniform(a=√5), B zero, both f32 leaves. Draws from libtorch's
    /// generator after seeding it.
    ///
    /// # Errors
    /// A rank, scale or dropout out of range; a target that matches no layer.
    pub fn init(base: &Base, init: &LoraInit, seed: i64) -> Result<Self> {
        if init.rank < 1 || !(0.0..1.0).contains(&init.dropout) || !init.alpha.is_finite() {
            let (rank, alpha, dropout) = (init.rank, init.alpha, init.dropout);
            let problem = format!("rank {rank}, alpha {alpha}, dropout {dropout}: rank at least 1, dropout in [0, 1)");
            return Err(Error::Adapter(problem));
        }
        let mut set = Self::empty(base);
        let matches = |path: &str, target: &str| path == target || path.ends_with(&format!(".{target}"));
        if let Some(target) =
            init.targets.iter().find(|target| !base.linears().iter().any(|l| matches(&l.path, target)))
        {
            let example = set.linears.first().map_or("", |linear| linear.path.as_str());
            let problem =
                format!("target {target:?} matches no linear layer of the base; layers look like {example:?}");
            return Err(Error::Adapter(problem));
        }
        tch::manual_seed(seed);
        let options = (Kind::Float, base.device());
        for (change, linear) in set.changes.iter_mut().zip(base.linears()) {
            if !init.targets.is_empty() && !init.targets.iter().any(|target| matches(&linear.path, target)) {
                continue;
            }
            let bound = 1.0 / (linear.in_features as f64).sqrt();
            let a = Tensor::rand([init.rank, linear.in_features], options) * (2.0 * bound) - bound;
            let b = Tensor::zeros([linear.out_features, init.rank], options);
            let (a, b) = (a.set_requires_grad(true), b.set_requires_grad(true));
            let lora = Lora { a, b, scale: init.alpha / init.rank as f64, dropout: init.dropout };
            *change = Some(Change { lora: Some(lora), ..Change::default() });
        }
        Ok(set)
    }

    /// Puts the factors for the layer at `path`.
    ///
    /// # Errors
    /// The base has no such layer, or the shapes do not fit it.
    pub fn insert(&mut self, path: &str, lora: Lora) -> Result<()> {
        self.served = None;
        let slot = self.slot(path)?;
        let linear = &self.linears[slot];
        let (a, b) = (lora.a.size(), lora.b.size());
        let fits = a.len() == 2
            && a[0] >= 1
            && a[1] == linear.in_features
            && b == [linear.out_features, a[0]]
            && lora.scale.is_finite();
        if !fits {
            let (input, out) = (linear.in_features, linear.out_features);
            let problem = format!("{path}: A {a:?} and B {b:?} do not fit a layer from {input} to {out} features");
            return Err(Error::Adapter(problem));
        }
        self.changes[slot].get_or_insert_default().lora = Some(lora);
        Ok(())
    }

    /// Makes the factors at `path`, which must be there, DoRA's: `magnitude` [out] in f32.
    ///
    /// # Errors
    /// No factors there, or some with dropout; a size that does not fit; a row of W + s·B·A without any length.
    pub fn insert_magnitude(&mut self, base: &Base, path: &str, magnitude: Tensor) -> Result<()> {
        self.served = None;
        let slot = self.slot(path)?;
        self.check_vector(slot, "magnitude", &magnitude)?;
        let change = self.changes[slot].as_ref();
        let own = change.and_then(|change| change.weight.as_ref()).map(|weight| Weight::Dense(weight.shallow_clone()));
        let dora = match change.and_then(|change| change.lora.as_ref()) {
            None => return Err(Error::Adapter(format!("{path}: a magnitude needs A and B"))),
            // PEFT would run the base's layer once more, on the inputs that dropout left.
            Some(lora) if lora.dropout > 0.0 => {
                return Err(Error::Adapter(format!(
                    "{path}: DoRA with dropout {} is not supported; use 0",
                    lora.dropout
                )));
            }
            Some(lora) => Dora::new(own.as_ref().unwrap_or(base.weight(slot)), lora, magnitude)?,
        };
        if !dora.is_finite() {
            return Err(Error::Adapter(format!(
                "{path}: a row of the base's weight with B·A is zero, so DoRA has no scale"
            )));
        }
        self.changes[slot].get_or_insert_default().dora = Some(dora);
        Ok(())
    }

    /// ‖W‖ of each row of the base's weight at `path`: the magnitudes that DoRA begins with, B being zero.
    ///
    /// # Errors
    /// No such layer; no memory.
    pub fn row_lengths(base: &Base, path: &str) -> Result<Tensor> {
        let weight = base.dense_weight(path);
        let weight = weight.ok_or_else(|| Error::Adapter(format!("base has no linear layer {path:?}")))?;
        Ok(weight.f_norm_scalaropt_dim(2, [1i64].as_slice(), false)?)
    }

    /// Makes DoRA's row lengths anew, as training must after A or B has moved.
    ///
    /// # Errors
    /// No memory.
    pub fn refresh_magnitudes(&mut self, base: &Base) -> Result<()> {
        for (slot, change) in self.changes.iter_mut().enumerate() {
            let Some(change) = change else { continue };
            let (Some(lora), Some(dora)) = (&change.lora, &change.dora) else { continue };
            let own = change.weight.as_ref().map(|weight| Weight::Dense(weight.shallow_clone()));
            let magnitude = dora.magnitude().shallow_clone();
            change.dora = Some(Dora::new(own.as_ref().unwrap_or(base.weight(slot)), lora, magnitude)?);
        }
        Ok(())
    }

    /// Adds a second, constant pair at `path`, where there must be a first.
    ///
    /// # Errors
    /// No factors there, or some with DoRA.
    pub fn insert_frozen(&mut self, path: &str, frozen: Lora) -> Result<()> {
        self.served = None;
        let slot = self.slot(path)?;
        match self.changes[slot].as_mut().filter(|change| change.lora.is_some() && change.dora.is_none()) {
            None => Err(Error::Adapter(format!("{path}: a second pair needs A and B, and no magnitude"))),
            Some(change) => {
                change.frozen = Some(frozen);
                Ok(())
            }
        }
    }

    /// Gives the B at `path` a bias [out] in f32.
    ///
    /// # Errors
    /// No factors there, or a size that does not fit.
    pub fn insert_lora_bias(&mut self, path: &str, bias: Tensor) -> Result<()> {
        self.served = None;
        let slot = self.slot(path)?;
        self.check_vector(slot, "bias of lora_B", &bias)?;
        match self.changes[slot].as_mut().filter(|change| change.lora.is_some()) {
            None => Err(Error::Adapter(format!("{path}: a bias of lora_B needs A and B"))),
            Some(change) => {
                change.lora_bias = Some(bias);
                Ok(())
            }
        }
    }

    /// Puts `tensor`, in the base's compute type, in the place of the base's parameter at `path`: an embedding, a norm,
    /// or a weight or bias of a linear layer or the head.
    ///
    /// # Errors
    /// The base has no such parameter that can be replaced, or has it in another shape.
    pub fn replace(&mut self, path: &str, tensor: Tensor) -> Result<()> {
        self.served = None;
        let misfit = |shape: &[i64]| {
            Err(Error::Adapter(format!("{path} is {:?} in the adapter and {shape:?} in the base", tensor.size())))
        };
        if let Some(site) = self.sites.iter().position(|site| site.path == path) {
            if tensor.size() != self.sites[site].shape {
                return misfit(&self.sites[site].shape);
            }
            self.whole[site] = Some(tensor);
            return Ok(());
        }
        let (module, is_weight) = match (path.strip_suffix(".weight"), path.strip_suffix(".bias")) {
            (Some(module), _) => (module, true),
            (None, Some(module)) => (module, false),
            (None, None) => return Err(Error::Adapter(format!("base has no parameter {path:?} that can be replaced"))),
        };
        let slot = self.slot(module)?;
        let linear = &self.linears[slot];
        let shape = if is_weight { vec![linear.out_features, linear.in_features] } else { vec![linear.out_features] };
        if tensor.size() != shape {
            return misfit(&shape);
        }
        let change = self.changes[slot].get_or_insert_default();
        *(if is_weight { &mut change.weight } else { &mut change.bias }) = Some(tensor);
        Ok(())
    }

    /// Puts virtual tokens before every input (prompt tuning, arXiv 2104.08691 §2): `prompt` [P, D] in f32.
    ///
    /// # Errors
    /// No token, or embeddings of another size than the base's.
    pub fn set_prompt(&mut self, base: &Base, prompt: Tensor) -> Result<()> {
        self.put_prompt(base.embedding().size()[1], prompt)
    }

    /// `width`: D.
    fn put_prompt(&mut self, width: i64, prompt: Tensor) -> Result<()> {
        match prompt.size().as_slice() {
            [tokens, own] if *tokens > 0 && *own == width => {}
            shape => {
                let problem = format!("virtual tokens {shape:?} do not fit embeddings of {width} values");
                return Err(Error::Adapter(problem));
            }
        }
        self.prompt = Some(prompt);
        Ok(())
    }

    /// The virtual tokens [P, D].
    pub(crate) fn prompt(&self) -> Option<&Tensor> {
        self.prompt.as_ref()
    }

    /// P: how many virtual tokens stand before an input.
    pub fn virtual_tokens(&self) -> usize {
        self.prompt.as_ref().map_or(0, |prompt| prompt.size()[0] as usize)
    }

    fn slot(&self, path: &str) -> Result<usize> {
        self.linears.iter().position(|linear| linear.path == path).ok_or_else(|| {
            let example = self.linears.first().map_or("", |linear| linear.path.as_str());
            Error::Adapter(format!("base has no linear layer {path:?}; its layers look like {example:?}"))
        })
    }

    fn check_vector(&self, slot: usize, what: &str, vector: &Tensor) -> Result<()> {
        let LinearInfo { path, out_features, .. } = &self.linears[slot];
        if vector.size() == [*out_features] {
            return Ok(());
        }
        let problem = format!("{path}: {what} {:?} does not fit a layer of {out_features} outputs", vector.size());
        Err(Error::Adapter(problem))
    }

    /// Rounds A and B to bf16 where the base's steps read them so: half the bytes that a step reads for each adapter. A set
    /// that has more than plain factors and virtual tokens stays as it is, and so does one with a value that bf16 does not
    /// reach. For inference alone.
    ///
    /// # Errors
    /// No memory.
    pub fn serve(&mut self, base: &Base) -> Result<()> {
        let plain = self.changes.iter().flatten().all(|change| change.is_plain());
        if base.steps == Steps::Operators || !plain || self.whole.iter().any(Option::is_some) {
            return Ok(());
        }
        let narrow = |x: &Tensor| x.f_detach()?.f_to_kind(Kind::BFloat16)?.f_contiguous();
        let mut rounded = Vec::new();
        for lora in self.changes.iter().flatten().filter_map(|change| change.lora.as_ref()) {
            let a = narrow(&lora.a)?;
            // However B lies, a view [out, R] is what everybody else sees.
            let b = match base.steps {
                // Outputs beside each other.
                Steps::Fused => narrow(&lora.b.f_transpose(0, 1)?)?.f_transpose(0, 1)?,
                // Rows of whole steps, with zeros behind them.
                Steps::OnDevice | Steps::Operators => {
                    let padding = padded_rank(lora.rank()) - lora.rank();
                    narrow(&lora.b.f_constant_pad_nd([0, padding].as_slice())?)?.f_narrow(1, 0, lora.rank())?
                }
            };
            if !is_finite(&a)? || !is_finite(&b)? {
                return Ok(());
            }
            rounded.push((a, b));
        }
        let factors = self.changes.iter_mut().flatten().filter_map(|change| change.lora.as_mut());
        factors.zip(rounded).for_each(|(lora, (a, b))| (lora.a, lora.b) = (a, b));
        self.mark_served();
        Ok(())
    }

    fn mark_served(&mut self) {
        self.served = Some(SERVED.fetch_add(1, Ordering::Relaxed));
    }

    /// Whether [`Self::serve`] has put it into the form that steps read, or there is nothing to put.
    pub(crate) fn is_served(&self) -> bool {
        self.served.is_some()
    }

    /// The number of this set's factors as [`Self::serve`] has made them: no others in this process ever have it.
    pub(crate) fn served_as(&self) -> Option<u64> {
        self.served
    }

    /// The factors for the linear layer in this place, of a set that is served.
    pub(crate) fn served<'a>(&'a self, slot: usize, rows: &'a [usize]) -> Option<LowRank<'a>> {
        let lora = self.change(slot)?.lora.as_ref()?;
        let rank = lora.rank() as usize;
        let out = self.linears[slot].out_features as usize;
        // SAFETY: `serve`, or `Prepared`, has made a buffer of so many values, [R, out], which lives as long as the view.
        let b = unsafe { std::slice::from_raw_parts(lora.b.data_ptr().cast::<bf16>(), out * rank) };
        Some(LowRank { a: crate::fused::values(&lora.a), b, rank, scale: lora.scale as f32, rows })
    }

    /// What happens to the linear layer in this place.
    pub(crate) fn change(&self, slot: usize) -> Option<&Change> {
        self.changes.get(slot)?.as_ref()
    }

    /// What stands in the place of the base's tensor at this site.
    pub(crate) fn whole(&self, site: usize) -> Option<&Tensor> {
        self.whole.get(site)?.as_ref()
    }

    fn changed(&self) -> impl Iterator<Item = (&LinearInfo, &Change)> {
        self.linears.iter().zip(&self.changes).filter_map(|(linear, change)| Some((linear, change.as_ref()?)))
    }

    /// Layers that have factors, in the base's order.
    pub fn iter(&self) -> impl Iterator<Item = (&LinearInfo, &Lora)> {
        self.changed().filter_map(|(linear, change)| Some((linear, change.lora.as_ref()?)))
    }

    pub fn is_empty(&self) -> bool {
        self.prompt.is_none() && self.changes.iter().all(Option::is_none) && self.whole.iter().all(Option::is_none)
    }

    /// Whether every layer and tensor is as in the base. False as soon as one number might differ.
    pub(crate) fn changes_nothing(&self) -> bool {
        self.prompt.is_none()
            && self.whole.iter().all(Option::is_none)
            && self.changes.iter().flatten().all(Change::is_none)
    }

    /// Handles on the tensors, in a fixed order, under PEFT's names: `<path>.lora_A.weight`, `<path>.lora_B.weight`,
    /// `<path>.lora_B.bias`, `<path>.lora_magnitude_vector`; what stands in the place of a parameter under that one's;
    /// `prompt_embeddings`.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let of_linears = self.changed().flat_map(|(linear, change)| change.parameters(&linear.path));
        let whole = self.sites.iter().zip(&self.whole);
        let whole = whole.filter_map(|(site, whole)| Some((site.path.clone(), whole.as_ref()?.shallow_clone())));
        let prompt = self.prompt.as_ref().map(|prompt| ("prompt_embeddings".to_owned(), prompt.shallow_clone()));
        of_linears.chain(whole).chain(prompt).collect()
    }

    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(|(_, tensor)| tensor.numel() as u64).sum()
    }

    /// Bytes of everything the set holds on to.
    pub fn resident_bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        let norms = self.changed().filter_map(|(_, change)| Some(bytes(change.dora.as_ref()?.norm())));
        self.parameters().iter().map(|(_, tensor)| bytes(tensor)).sum::<usize>() + norms.sum::<usize>()
    }
}

/// Length of B's rows for a device, whose kernel (`low_rank.cu`) reads eight values at a time.
fn padded_rank(rank: i64) -> i64 {
    (rank + 7) / 8 * 8
}

fn is_finite(x: &Tensor) -> std::result::Result<bool, tch::TchError> {
    Ok(x.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}
