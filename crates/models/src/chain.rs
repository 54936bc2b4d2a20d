//! Gradient checkpointing by layers (arXiv 1604.06174 §3): forward keeps each layer's input and nothing else, backward
//! runs the layer once more to have what its gradient needs. Or it keeps what the layer's products and its attention gave
//! too, which cost most of its time, and only what stands between them is made again (arXiv 2205.05198 §5).
//!
//! The layers' graphs are never connected: each is made from its kept input, gone through with the gradient that the
//! layer above left, and dropped before the next. So one layer's activations are in memory at a time. Random numbers are
//! put back to what they were, so dropout drops the same. A layer's last product is neither made again nor kept where only
//! the sum that ends the layer takes it: no gradient hangs on its value. The inputs may wait in the host's memory; then the
//! next one is on its way back while a layer runs.

use tailor_torch::Tape;
use tailor_torch::gpu::Parked;
use tch::Tensor;

use crate::{Error, Result};

/// What a layer that runs again for its gradient finds in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keeps {
    /// Its input.
    #[default]
    Inputs,
    /// Its input, which waits in the host's memory, not the GPU's.
    ParkedInputs,
    /// Its input, and what its products and its attention gave.
    Products,
}

/// What a layer runs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// What it gives.
    Values,
    /// What it gives, while a tape records what its backward pass is to find.
    Recorded,
    /// Its backward pass alone, which has no use for what it gives.
    Gradient,
}

/// Layers that follow each other.
pub(crate) struct Chain<'a> {
    layer: Box<Layer<'a>>,
    kept: Vec<Kept>,
    /// The first layer's input with its own history, where something before the layers is trained.
    entry: Option<Tensor>,
    /// What the last layer gave, as a leaf: whatever follows leaves its gradient here.
    pub last: Tensor,
}

/// The output of the layer with this number for an input.
type Layer<'a> = dyn Fn(usize, &Tensor, Run) -> Tensor + 'a;

struct Kept {
    input: Input,
    random: Vec<u8>,
    tape: Option<Tape>,
}

enum Input {
    Here(Tensor),
    Parked(Parked),
}

impl Input {
    fn new(tensor: Tensor, park: bool) -> Result<Self> {
        Ok(if park { Self::Parked(Parked::new(&tensor)?) } else { Self::Here(tensor) })
    }

    fn prefetch(&mut self) -> Result<()> {
        match self {
            Self::Here(_) => Ok(()),
            Self::Parked(parked) => Ok(parked.prefetch()?),
        }
    }

    fn fetch(self) -> Result<Tensor> {
        match self {
            Self::Here(tensor) => Ok(tensor),
            Self::Parked(parked) => Ok(parked.fetch()?),
        }
    }
}

impl<'a> Chain<'a> {
    /// Runs `layers` layers on `x`, keeping of them what `keeps` says and no history.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn forward(
        x: Tensor,
        layers: usize,
        keeps: Keeps,
        layer: impl Fn(usize, &Tensor, Run) -> Tensor + 'a,
    ) -> Result<Self> {
        let mut kept = Vec::with_capacity(layers);
        let entry = x.requires_grad().then(|| x.shallow_clone());
        let mut x = x.f_detach()?;
        for i in 0..layers {
            let random = tailor_torch::rng_state()?;
            let run = |run| tch::no_grad(|| layer(i, &x, run));
            let (y, tape) = match keeps {
                Keeps::Inputs | Keeps::ParkedInputs => (run(Run::Values), None),
                Keeps::Products => {
                    let mut tape = Tape::new()?;
                    (tape.record(|| run(Run::Recorded))?, Some(tape))
                }
            };
            kept.push(Kept { input: Input::new(x, keeps == Keeps::ParkedInputs)?, random, tape });
            x = y;
        }
        Ok(Self { layer: Box::new(layer), kept, entry, last: x.f_detach()?.f_set_requires_grad(true)? })
    }

    /// Goes back from the gradient at [`Self::last`], adding to the gradients of the layers' parameters and of what made
    /// the first one's input.
    ///
    /// # Errors
    /// Nothing has left a gradient there; libtorch failed.
    pub fn backward(mut self) -> Result<()> {
        let random = tailor_torch::rng_state()?;
        let mut gradient = gradient_of(&self.last)?;
        self.last = Tensor::new();
        while let Some(Kept { input, random, tape }) = self.kept.pop() {
            tailor_torch::set_rng_state(&random)?;
            if let Some(next) = self.kept.last_mut() {
                next.input.prefetch()?;
            }
            let x = input.fetch()?.f_set_requires_grad(true)?;
            let again = || (self.layer)(self.kept.len(), &x, Run::Gradient);
            let y = match tape {
                None => again(),
                Some(mut tape) => tape.replay(again)?,
            };
            tailor_torch::backward(&[(&y, Some(&gradient))], false)?;
            gradient = gradient_of(&x)?;
        }
        if let Some(entry) = self.entry.take() {
            tailor_torch::backward(&[(&entry, Some(&gradient))], false)?;
        }
        Ok(tailor_torch::set_rng_state(&random)?)
    }
}

fn gradient_of(leaf: &Tensor) -> Result<Tensor> {
    let gradient = leaf.f_grad()?;
    if gradient.defined() { Ok(gradient) } else { Err(Error::Request("no gradient has come to this layer".into())) }
}
