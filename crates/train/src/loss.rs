//! Cross-entropy over the unmasked tokens, with its backward pass, without ever holding all logits.
//!
//! Only positions that carry a label reach the output layer, and those in slices of at most [`MAX_LOGITS`] logits: each
//! slice's logits live until its own backward pass, which leaves the gradient of the hidden states. One backward pass
//! from that gradient then goes through the layers. The result is that of the plain loss (tested); the memory is not.

use std::ops::AddAssign;

use tailor_models::Result;
use tailor_torch::LabelWeights as Weights;
use tailor_torch::device::{cross_entropy_in_place, has_kernels};
use tailor_torch::gpu::upload;
use tch::{Kind, Reduction, Tensor};

/// Logits in one slice: 64 MiB of f32.
const MAX_LOGITS: i64 = 1 << 24;
/// The same where kernels turn them into their gradient in place: 128 MiB of bf16, enough rows to fill a GPU.
const MAX_LOGITS_IN_PLACE: i64 = 1 << 26;

/// The label of a position that adds nothing to the loss.
pub const IGNORED: i64 = -100;

/// The output layer.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// (n, D) → (n, V)
    pub logits: &'a dyn Fn(&Tensor) -> Result<Tensor>,
    /// Its weight (V, D), where there is nothing else to it and it is not trained.
    pub constant: Option<&'a Tensor>,
}

/// Positions that carry a label.
pub struct Targets {
    /// Indices into the flattened (B·T) positions.
    positions: Vec<i64>,
    labels: Vec<i64>,
    /// T.
    width: i64,
}

impl Targets {
    /// `labels` holds one label for each of the B·T positions, [`IGNORED`] where there is none; `width` is T.
    pub fn new(labels: &[i64], width: i64) -> Self {
        let kept = (0i64..).zip(labels.iter().copied()).filter(|(_, label)| *label != IGNORED);
        let (positions, labels) = kept.unzip();
        Self { positions, labels, width }
    }

    /// Which of the B sequences each label belongs to.
    pub fn sequences(&self) -> Vec<usize> {
        self.positions.iter().map(|position| (position / self.width.max(1)) as usize).collect()
    }

    #[cfg(test)]
    pub fn pairs(&self) -> Vec<(i64, i64)> {
        self.positions.iter().copied().zip(self.labels.iter().copied()).collect()
    }
}

/// The hidden states of positions that carry a label.
pub struct Picked {
    /// (n, D) with the history of what they came from.
    states: Tensor,
    labels: Tensor, // (n)
    vocab: i64,
}

/// A sum of losses in nats: known, or what a GPU has yet to come to. Reading that one waits for all that was launched before
/// it, so it is left until the last launch of a step.
#[derive(Debug)]
pub enum Sum {
    Known(f64),
    /// A double where the states are.
    Coming(Tensor),
}

impl Sum {
    /// None where it would have to be waited for.
    pub fn known(&self) -> Option<f64> {
        match self {
            Self::Known(sum) => Some(*sum),
            Self::Coming(_) => None,
        }
    }

    /// # Errors
    /// Torch cannot allocate it.
    pub fn times(self, factor: f64) -> Result<Self> {
        Ok(match self {
            Self::Known(sum) => Self::Known(sum * factor),
            Self::Coming(sum) => Self::Coming(sum.f_mul_scalar(factor)?),
        })
    }

    /// Waits once for all that are not known.
    ///
    /// # Errors
    /// The device failed at something that was launched before.
    pub fn read(sums: &[Self]) -> Result<Vec<f64>> {
        let mut coming = Vec::new();
        for sum in sums {
            if let Self::Coming(sum) = sum {
                coming.push(sum);
            }
        }
        let come = if coming.is_empty() { Vec::new() } else { Vec::<f64>::try_from(&Tensor::f_stack(&coming, 0)?)? };
        let mut come = come.into_iter();
        // As many have come as were waited for.
        Ok(sums.iter().map(|sum| sum.known().or_else(|| come.next()).unwrap_or(f64::NAN)).collect())
    }
}

/// What a measurement without any gradient sums up to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// Nats.
    pub loss: f64,
    /// Labels that the model would have chosen itself.
    pub correct: u64,
    pub labels: u64,
}

impl AddAssign for Measured {
    fn add_assign(&mut self, more: Self) {
        self.loss += more.loss;
        self.correct += more.correct;
        self.labels += more.labels;
    }
}

impl Picked {
    /// # Shapes
    /// `hidden`: (B, T, D).
    ///
    /// # Errors
    /// Torch cannot allocate them.
    pub fn new(hidden: &Tensor, targets: &Targets, vocab: i64) -> Result<Self> {
        let device = hidden.device();
        let width = hidden.size().last().copied().unwrap_or_default();
        let positions = upload(&Tensor::f_from_slice(&targets.positions)?, device)?;
        let labels = upload(&Tensor::f_from_slice(&targets.labels)?, device)?;
        let states = hidden.f_reshape([-1, width])?.f_index_select(0, &positions)?;
        Ok(Self { states, labels, vocab })
    }

    /// The summed loss in nats. Gradients of the weighted loss are added to every leaf below the states and inside
    /// `head`.
    ///
    /// # Errors
    /// Torch fails, most likely for want of memory.
    pub fn backward(&self, head: Head<'_>, weights: Weights<'_>) -> Result<Sum> {
        if has_kernels(&self.states) {
            return self.backward_in_place(head, weights);
        }
        let (sum, gradient) = match head.constant {
            Some(weight) => self.through_constant(weight, weights)?,
            None => self.through(head, weights)?,
        };
        tailor_torch::backward(&[(&self.states, Some(&gradient))], false)?;
        Ok(Sum::Known(sum))
    }

    /// The summed loss and the gradient of the states.
    fn through_constant(&self, head: &Tensor, weights: Weights<'_>) -> Result<(f64, Tensor)> {
        let states = self.states.f_detach()?;
        let (mut sum, mut gradients) = (0.0, Vec::new());
        for (start, length) in self.slices() {
            let own; // lives as long as what refers to it
            let weights = match weights {
                Weights::Same(weight) => Weights::Same(weight),
                Weights::Each(weights) => {
                    own = weights.f_narrow(0, start, length)?;
                    Weights::Each(&own)
                }
            };
            let (states, labels) = (states.f_narrow(0, start, length)?, self.labels.f_narrow(0, start, length)?);
            let (loss, gradient) = tailor_torch::cross_entropy(&states, head, &labels, weights)?;
            sum += loss;
            gradients.push(gradient);
        }
        Ok((sum, Tensor::f_cat(&gradients, 0)?))
    }

    /// The same through a head with a history of its own, whose gradients are added to its leaves.
    fn through(&self, head: Head<'_>, weights: Weights<'_>) -> Result<(f64, Tensor)> {
        let cut = self.states.f_detach()?.f_set_requires_grad(true)?;
        let mut sum = 0.0;
        for (start, length) in self.slices() {
            let logits = (head.logits)(&cut.f_narrow(0, start, length)?)?.f_to_kind(Kind::Float)?; // (n, V)
            let labels = self.labels.f_narrow(0, start, length)?;
            match weights {
                Weights::Same(scale) => {
                    let loss = logits.f_cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Sum, IGNORED, 0.0)?;
                    sum += f64::try_from(&loss)?;
                    loss.f_mul_scalar(scale)?.f_backward()?;
                }
                Weights::Each(weights) => {
                    let loss = logits.f_cross_entropy_loss(&labels, None::<&Tensor>, Reduction::None, IGNORED, 0.0)?;
                    sum += f64::try_from(&loss.f_detach()?.f_sum(Kind::Float)?)?;
                    loss.f_dot(&weights.f_narrow(0, start, length)?)?.f_backward()?;
                }
            }
        }
        Ok((sum, cut.f_grad()?))
    }

    /// As [`Self::backward`] by kernels: a slice's logits become their own gradient. The host waits for nothing.
    fn backward_in_place(&self, head: Head<'_>, weights: Weights<'_>) -> Result<Sum> {
        let cut = self.states.f_detach()?.f_set_requires_grad(true)?;
        let mut losses = Vec::new();
        for (start, length) in self.slices_of(MAX_LOGITS_IN_PLACE) {
            let logits = (head.logits)(&cut.f_narrow(0, start, length)?)?; // (n, V) in the head's type
            let labels = self.labels.f_narrow(0, start, length)?;
            // Of the same memory, outside the history: nothing before the head's result reads it again.
            let own = logits.f_detach()?;
            let loss = match weights {
                Weights::Same(scale) => cross_entropy_in_place(&own, &labels, None, scale)?,
                Weights::Each(weights) => {
                    cross_entropy_in_place(&own, &labels, Some(&weights.f_narrow(0, start, length)?), 0.0)?
                }
            };
            losses.push(loss.f_sum(Kind::Double)?);
            tailor_torch::backward(&[(&logits, Some(&own))], false)?;
        }
        tailor_torch::backward(&[(&self.states, Some(&cut.f_grad()?))], false)?;
        Ok(Sum::Coming(Tensor::f_stack(&losses, 0)?.f_sum(Kind::Double)?))
    }

    /// The log-probability of each label, in nats, without any gradient.
    ///
    /// # Errors
    /// As [`Self::backward`].
    pub fn log_probs(&self, head: Head<'_>) -> Result<Vec<f64>> {
        Ok(Vec::try_from(&self.log_probs_there(head)?)?)
    }

    /// The same as doubles (n) where the states are, which the host does not wait for.
    ///
    /// # Errors
    /// As [`Self::backward`].
    pub fn log_probs_there(&self, head: Head<'_>) -> Result<Tensor> {
        let mut all = Vec::new();
        self.each_slice(head, |logits, labels| {
            let losses = logits.f_cross_entropy_loss(labels, None::<&Tensor>, Reduction::None, IGNORED, 0.0)?;
            all.push(losses.f_to_kind(Kind::Double)?.f_neg()?);
            Ok(())
        })?;
        match all.is_empty() {
            true => Ok(Tensor::f_from_slice::<f64>(&[])?),
            false => Ok(Tensor::f_cat(&all, 0)?),
        }
    }

    /// # Errors
    /// As [`Self::backward`].
    pub fn measure(&self, head: Head<'_>) -> Result<Measured> {
        let mut sums = Measured { labels: self.labels.size()[0] as u64, ..Measured::default() };
        self.each_slice(head, |logits, labels| {
            let loss = logits.f_cross_entropy_loss(labels, None::<&Tensor>, Reduction::Sum, IGNORED, 0.0)?;
            sums.loss += f64::try_from(&loss)?;
            let right = logits.f_argmax(-1, false)?.f_eq_tensor(labels)?.f_sum(Kind::Int64)?;
            sums.correct += i64::try_from(&right)? as u64;
            Ok(())
        })?;
        Ok(sums)
    }

    fn each_slice(&self, head: Head<'_>, mut work: impl FnMut(&Tensor, &Tensor) -> Result<()>) -> Result<()> {
        tch::no_grad(|| {
            let states = self.states.f_detach()?;
            for (start, length) in self.slices() {
                let logits = (head.logits)(&states.f_narrow(0, start, length)?)?.f_to_kind(Kind::Float)?;
                work(&logits, &self.labels.f_narrow(0, start, length)?)?;
            }
            Ok(())
        })
    }

    /// Start and length of each slice.
    fn slices(&self) -> impl Iterator<Item = (i64, i64)> + use<> {
        self.slices_of(MAX_LOGITS)
    }

    fn slices_of(&self, most: i64) -> impl Iterator<Item = (i64, i64)> + use<> {
        let count = self.labels.size()[0];
        let slice = (most / self.vocab.max(1)).max(1);
        (0..count).step_by(slice as usize).map(move |start| (start, slice.min(count - start)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer, a head, and the labels of 3 × 5 positions.
    fn setting() -> (Tensor, Tensor, Tensor, Vec<i64>) {
        tch::manual_seed(3);
        let options = (Kind::Float, tch::Device::Cpu);
        let input = Tensor::randn([3, 5, 8], options);
        let layer = Tensor::randn([8, 8], options).set_requires_grad(true);
        let head = Tensor::randn([11, 8], options);
        let labels = (0..15).map(|at| if at % 4 == 0 { IGNORED } else { at % 11 }).collect();
        (input, layer, head, labels)
    }

    fn plain<'a>(logits: &'a dyn Fn(&Tensor) -> Result<Tensor>) -> Head<'a> {
        Head { logits, constant: None }
    }

    fn read(sum: Sum) -> f64 {
        Sum::read(&[sum]).expect("read")[0]
    }

    fn ours(labels: &[i64], scale: f64) -> (f64, Tensor) {
        let (input, mut layer, head, _) = setting();
        layer.zero_grad();
        let hidden = input.matmul(&layer).tanh();
        let picked = Picked::new(&hidden, &Targets::new(labels, 5), 11).expect("picked");
        let sum = picked.backward(plain(&|x| Ok(x.f_matmul(&head.tr())?)), Weights::Same(scale)).expect("backward");
        (read(sum), layer.grad().copy())
    }

    #[test]
    fn loss_and_gradient_equal_the_plain_cross_entropy() {
        let (input, layer, head, labels) = setting();
        let logits = input.matmul(&layer).tanh().matmul(&head.tr()).reshape([15, 11]);
        let plain =
            logits.cross_entropy_loss(&Tensor::from_slice(&labels), None::<&Tensor>, Reduction::Sum, IGNORED, 0.0);
        (&plain * 0.25).backward();
        let (sum, gradient) = ours(&labels, 0.25);
        assert!((sum - f64::try_from(&plain).expect("loss")).abs() < 1e-4);
        assert!(gradient.allclose(&layer.grad(), 1e-5, 1e-6, false));
    }

    #[test]
    fn sums_that_have_yet_to_come_are_read_in_their_places() {
        let coming = |sum: f64| Sum::Coming(Tensor::from(sum));
        let sums = [coming(1.5), Sum::Known(-0.25), coming(f64::INFINITY)];
        let sums = sums.map(|sum| sum.times(3.0).expect("multiplied"));
        assert_eq!(Sum::read(&sums).expect("read"), [4.5, -0.75, f64::INFINITY]);
        assert_eq!(sums.map(|sum| sum.known()), [None, Some(-0.75), None]);
        assert!(Sum::read(&[]).expect("nothing to wait for").is_empty());
    }

    #[test]
    fn a_constant_head_gives_the_same_loss_and_gradient() {
        let (input, mut layer, head, labels) = setting();
        let logits = |x: &Tensor| Ok(x.f_matmul(&head.tr())?);
        let of_labels = Tensor::from_slice(&(0..11).map(|at| at as f32 * 0.1 - 0.3).collect::<Vec<_>>());
        for weights in [Weights::Same(0.25), Weights::Each(&of_labels)] {
            let mut found = Vec::new();
            for constant in [None, Some(&head)] {
                layer.zero_grad();
                let picked = Picked::new(&input.matmul(&layer).tanh(), &Targets::new(&labels, 5), 11).expect("picked");
                let sum = picked.backward(Head { logits: &logits, constant }, weights).expect("backward");
                found.push((read(sum), layer.grad().copy()));
            }
            assert!((found[0].0 - found[1].0).abs() < 1e-4);
            assert!(found[0].1.allclose(&found[1].1, 1e-5, 1e-6, false));
        }
    }

    #[test]
    fn a_masked_label_adds_no_loss_and_no_gradient() {
        let (_, _, _, mut labels) = setting();
        let (whole, gradient_of_all) = ours(&labels, 1.0);
        let kept = labels[14];
        labels[14] = IGNORED;
        let (without, gradient_without) = ours(&labels, 1.0);
        let only: Vec<i64> = (0..15).map(|at| if at == 14 { kept } else { IGNORED }).collect();
        let (alone, gradient_alone) = ours(&only, 1.0);
        assert!((whole - without - alone).abs() < 1e-4);
        assert!((gradient_of_all - gradient_without).allclose(&gradient_alone, 1e-4, 1e-5, false));
        assert!(Targets::new(&[IGNORED; 4], 2).pairs().is_empty());
    }

    #[test]
    fn weights_of_each_label_and_log_probs_agree_with_the_plain_loss() {
        let (input, mut layer, head, labels) = setting();
        let targets = Targets::new(&labels, 5);
        assert_eq!(targets.sequences(), [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
        let logits = |x: &Tensor| Ok(x.f_matmul(&head.tr())?);
        let head = plain(&logits);
        let picked = Picked::new(&input.matmul(&layer).tanh(), &targets, 11).expect("picked");
        let log_probs = picked.log_probs(head).expect("log-probabilities");
        let measured = picked.measure(head).expect("measured");
        assert!((measured.loss + log_probs.iter().sum::<f64>()).abs() < 1e-4);
        assert_eq!(measured.labels, log_probs.len() as u64);
        assert!(measured.correct < measured.labels, "a random model is not always right");

        let weights = Tensor::from_slice(&[0.25f32; 11]);
        picked.backward(head, Weights::Each(&weights)).expect("backward");
        let each = layer.grad().copy();
        layer.zero_grad();
        let picked = Picked::new(&input.matmul(&layer).tanh(), &targets, 11).expect("picked");
        picked.backward(head, Weights::Same(0.25)).expect("backward");
        assert!(each.allclose(&layer.grad(), 1e-5, 1e-6, false));
    }
}
