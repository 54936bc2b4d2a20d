//! What one pass through a model runs with: no adapter, one for the whole batch, or one for each row.

use std::rc::Rc;

use tch::{Device, Tensor};

use crate::chain::Keeps;
use crate::change::Change;
use crate::linear::Linear;
use crate::lora::LoraSet;
use crate::texts::Texts;
use crate::weights::Dense;

/// What one pass through the model runs with.
pub struct Pass<'a> {
    pub adapters: Adapters<'a>,
    /// Dropout is on.
    pub training: bool,
    /// NEFTune (arXiv 2310.05914 algorithm 1): α of the uniform noise on the embeddings, α/√(T·D); 0 is none.
    pub noise: f64,
    /// Where the texts of a packed batch begin, as its mask says too: where kernels are, attention goes by this.
    pub texts: Option<Rc<Texts>>,
    /// What layers that run again find in memory.
    pub keeps: Keeps,
}

pub enum Adapters<'a> {
    None,
    One(&'a LoraSet),
    Rows(&'a Routes<'a>),
}

impl<'a> Pass<'a> {
    fn of(adapters: Adapters<'a>) -> Self {
        Self { adapters, training: false, noise: 0.0, texts: None, keeps: Keeps::Inputs }
    }

    /// The base alone.
    pub fn base() -> Pass<'static> {
        Pass::of(Adapters::None)
    }

    /// One adapter for all rows, without dropout.
    pub fn one(set: &'a LoraSet) -> Self {
        Self::of(Adapters::One(set))
    }

    /// As [`Pass::one`], or [`Pass::base`] where there is none.
    pub fn maybe(set: Option<&'a LoraSet>) -> Self {
        Self::of(set.map_or(Adapters::None, Adapters::One))
    }

    /// One adapter for all rows, with dropout.
    pub fn training(set: &'a LoraSet) -> Self {
        Self { training: true, ..Self::one(set) }
    }

    /// The same pass with noise on the embeddings.
    pub fn with_noise(self, alpha: f64) -> Self {
        Self { noise: alpha, ..self }
    }

    /// The same pass for a batch of these texts.
    pub fn with_texts(self, texts: Option<Rc<Texts>>) -> Self {
        Self { texts, ..self }
    }

    /// The same pass, layers that run again keeping this.
    pub fn keeping(self, keeps: Keeps) -> Self {
        Self { keeps, ..self }
    }

    /// [B, T, D] → the same
    pub(crate) fn noisy(&self, x: Tensor) -> Tensor {
        if self.noise == 0.0 {
            return x;
        }
        let size = x.size();
        let magnitude = self.noise / ((size[1] * size[2]) as f64).sqrt();
        let noise = Tensor::rand(size.as_slice(), (tch::Kind::Float, x.device())) * (2.0 * magnitude) - magnitude;
        &x + noise.to_kind(x.kind())
    }

    /// An adapter for each row of the first dimension. Inference only: it writes in place.
    pub fn rows(routes: &'a Routes<'a>) -> Self {
        Self::of(Adapters::Rows(routes))
    }

    /// `op` of `x` and a tensor of the base, or the adapter's own in its place.
    ///
    /// # Shapes
    /// With an adapter for each row: `x` [B, ..] → [B, ..]
    pub(crate) fn with(&self, dense: &Dense, x: &Tensor, op: impl Fn(&Tensor, &Tensor) -> Tensor) -> Tensor {
        match &self.adapters {
            Adapters::None => op(x, &dense.tensor),
            Adapters::One(set) => op(x, set.whole(dense.site).unwrap_or(&dense.tensor)),
            Adapters::Rows(routes) => routes.with(dense, x, op),
        }
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

    /// # Shapes
    /// `x` [B, T, in] → [B, T, out]
    pub(crate) fn forward(&self, linear: &Linear, x: &Tensor) -> Tensor {
        let changes = self.groups.iter().filter_map(|group| Some((group, group.set.change(linear.slot)?)));
        let changes: Vec<(&Group<'_>, &Change)> = changes.collect();
        if let [(group, change)] = changes.as_slice()
            && group.rows.len() as i64 == self.rows
        {
            return change.forward(linear, x, false);
        }
        let mut y = linear.plain(x);
        for (group, change) in changes {
            let (some_y, some_x) = (y.index_select(0, &group.index), x.index_select(0, &group.index));
            y = y.index_copy_(0, &group.index, &change.add_to(linear, &some_y, &some_x, false));
        }
        y
    }

    /// The set of this row.
    pub(crate) fn set(&self, row: usize) -> Option<&'a LoraSet> {
        self.groups.iter().find(|group| group.rows.contains(&(row as i64))).map(|group| group.set)
    }

    /// As [`Pass::with`].
    fn with(&self, dense: &Dense, x: &Tensor, op: impl Fn(&Tensor, &Tensor) -> Tensor) -> Tensor {
        let own = self.groups.iter().filter_map(|group| Some((group, group.set.whole(dense.site)?)));
        let own: Vec<(&Group<'_>, &Tensor)> = own.collect();
        match own.as_slice() {
            [] => return op(x, &dense.tensor),
            [(group, tensor)] if group.rows.len() as i64 == self.rows => return op(x, tensor),
            _ => {}
        }
        let plain = (0..self.rows).filter(|row| !own.iter().any(|(group, _)| group.rows.contains(row)));
        let plain = Tensor::from_slice(&plain.collect::<Vec<i64>>()).to_device(x.device());
        let of_base = (&plain, &dense.tensor);
        let parts = own.iter().map(|(group, tensor)| (&group.index, *tensor)).chain([of_base]);
        let (indices, outputs): (Vec<&Tensor>, Vec<Tensor>) = parts
            .filter(|(index, _)| index.numel() > 0)
            .map(|(index, tensor)| (index, op(&x.index_select(0, index), tensor)))
            .unzip();
        // The rows lie part after part; their places put them in the order of the batch.
        Tensor::cat(&outputs, 0).index_select(0, &Tensor::cat(&indices, 0).argsort(0, false))
    }
}
