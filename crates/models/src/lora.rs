//! LoRA, arXiv 2106.09685 eq. 3: h = W0·x + s·B·A·x, with s = α/r. A and B in f32 whatever the base computes in.
//!
//! A set is not part of the base. A pass names the set it runs with, or one set for each row of the batch, so attaching,
//! detaching and mixing need no change of the model.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::{Base, Error, LinearInfo, Result};

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
        let dropped = (training && self.dropout > 0.0).then(|| x.dropout(self.dropout, true));
        let x = dropped.as_ref().unwrap_or(x);
        tailor_torch::lora(y, x, &self.a, &self.b, self.scale).unwrap_or_else(|error| panic!("{error}"))
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

/// The LoRA factors of one adapter, by linear layer of one base.
#[derive(Debug)]
pub struct LoraSet {
    linears: Arc<[LinearInfo]>,
    slots: Vec<Option<Lora>>,
}

impl LoraSet {
    pub fn empty(base: &Base) -> Self {
        let linears = base.linears_shared();
        let slots = linears.iter().map(|_| None).collect();
        Self { linears, slots }
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
        if let Some(target) = init.targets.iter().find(|target| !set.linears.iter().any(|l| matches(&l.path, target))) {
            let example = set.linears.first().map_or("", |linear| linear.path.as_str());
            let problem =
                format!("target {target:?} matches no linear layer of the base; layers look like {example:?}");
            return Err(Error::Adapter(problem));
        }
        tch::manual_seed(seed);
        let options = (Kind::Float, base.device());
        for (slot, linear) in set.slots.iter_mut().zip(set.linears.iter()) {
            if !init.targets.is_empty() && !init.targets.iter().any(|target| matches(&linear.path, target)) {
                continue;
            }
            let bound = 1.0 / (linear.in_features as f64).sqrt();
            let a = Tensor::rand([init.rank, linear.in_features], options) * (2.0 * bound) - bound;
            let b = Tensor::zeros([linear.out_features, init.rank], options);
            *slot = Some(Lora {
                a: a.set_requires_grad(true),
                b: b.set_requires_grad(true),
                scale: init.alpha / init.rank as f64,
                dropout: init.dropout,
            });
        }
        Ok(set)
    }

    /// Puts the factors for the layer at `path`.
    ///
    /// # Errors
    /// The base has no such layer, or the shapes do not fit it.
    pub fn insert(&mut self, path: &str, lora: Lora) -> Result<()> {
        let Some(slot) = self.linears.iter().position(|linear| linear.path == path) else {
            let example = self.linears.first().map_or("", |linear| linear.path.as_str());
            return Err(Error::Adapter(format!("base has no linear layer {path:?}; its layers look like {example:?}")));
        };
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
        self.slots[slot] = Some(lora);
        Ok(())
    }

    pub(crate) fn slot(&self, slot: usize) -> Option<&Lora> {
        self.slots.get(slot)?.as_ref()
    }

    /// Layers that have factors, in the base's order.
    pub fn iter(&self) -> impl Iterator<Item = (&LinearInfo, &Lora)> {
        self.linears.iter().zip(&self.slots).filter_map(|(linear, slot)| Some((linear, slot.as_ref()?)))
    }

    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// `<path>.lora_A.weight` and `<path>.lora_B.weight` with handles on the tensors, in a fixed order.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let both = |(linear, lora): (&LinearInfo, &Lora)| {
            [
                (format!("{}.lora_A.weight", linear.path), lora.a.shallow_clone()),
                (format!("{}.lora_B.weight", linear.path), lora.b.shallow_clone()),
            ]
        };
        self.iter().flat_map(both).collect()
    }

    pub fn parameter_count(&self) -> u64 {
        self.iter().map(|(_, lora)| (lora.a.numel() + lora.b.numel()) as u64).sum()
    }

    pub fn resident_bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        self.iter().map(|(_, lora)| bytes(&lora.a) + bytes(&lora.b)).sum()
    }
}

/// What one pass through the model runs with.
pub struct Pass<'a> {
    pub adapters: Adapters<'a>,
    /// Dropout is on.
    pub training: bool,
}

pub enum Adapters<'a> {
    None,
    One(&'a LoraSet),
    Rows(&'a Routes<'a>),
}

impl<'a> Pass<'a> {
    /// The base alone.
    pub fn base() -> Pass<'static> {
        Pass { adapters: Adapters::None, training: false }
    }

    /// One adapter for all rows, without dropout.
    pub fn one(set: &'a LoraSet) -> Self {
        Self { adapters: Adapters::One(set), training: false }
    }

    /// As [`Pass::one`], or [`Pass::base`] where there is none.
    pub fn maybe(set: Option<&'a LoraSet>) -> Self {
        set.map_or(Pass { adapters: Adapters::None, training: false }, Self::one)
    }

    /// One adapter for all rows, with dropout.
    pub fn training(set: &'a LoraSet) -> Self {
        Self { adapters: Adapters::One(set), training: true }
    }

    /// An adapter for each row. Inference only: it writes in place.
    pub fn rows(routes: &'a Routes<'a>) -> Self {
        Self { adapters: Adapters::Rows(routes), training: false }
    }
}

/// Which rows of a batch run with which set.
pub struct Routes<'a> {
    groups: Vec<Group<'a>>,
    rows: i64,
}

struct Group<'a> {
    set: &'a LoraSet,
    rows: Vec<i64>,
    index: Tensor,
}

impl<'a> Routes<'a> {
    pub fn new(sets: &[Option<&'a LoraSet>], device: Device) -> Self {
        let mut groups: Vec<Group<'a>> = Vec::new();
        for (row, set) in sets.iter().enumerate() {
            let Some(set) = *set else { continue };
            match groups.iter_mut().find(|group| std::ptr::eq(group.set, set)) {
                Some(group) => group.rows.push(row as i64),
                None => groups.push(Group { set, rows: vec![row as i64], index: Tensor::new() }),
            }
        }
        for group in &mut groups {
            group.index = Tensor::from_slice(&group.rows).to_device(device);
        }
        Self { groups, rows: sets.len() as i64 }
    }

    /// Rows of the batch these routes are for.
    pub fn rows(&self) -> usize {
        self.rows as usize
    }

    /// `y` [B, T, out] and `x` [B, T, in] → [B, T, out]
    pub(crate) fn add_to(&self, mut y: Tensor, x: &Tensor, slot: usize) -> Tensor {
        for group in &self.groups {
            let Some(lora) = group.set.slot(slot) else { continue };
            if group.rows.len() as i64 == self.rows {
                return lora.add_to(&y, x, false);
            }
            let (some_y, some_x) = (y.index_select(0, &group.index), x.index_select(0, &group.index));
            y = y.index_copy_(0, &group.index, &lora.add_to(&some_y, &some_x, false));
        }
        y
    }
}
