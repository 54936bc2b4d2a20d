//! Cross-entropy over the unmasked tokens, with its backward pass, without ever holding all logits.
//!
//! Only positions that carry a label reach the output layer, and those in slices of at most [`MAX_LOGITS`] logits: each
//! slice's logits live until its own backward pass, which leaves the gradient of the hidden states. One backward pass
//! from that gradient then goes through the layers. The result is that of the plain loss (tested); the memory is not.

use tailor_models::Result;
use tch::{Kind, Reduction, Tensor};

/// Logits in one slice: 64 MiB of f32.
const MAX_LOGITS: i64 = 1 << 24;

/// The label of a position that adds nothing to the loss.
pub const IGNORED: i64 = -100;

/// Positions that carry a label.
pub struct Targets {
    /// Indices into the flattened (B·T) positions.
    positions: Vec<i64>,
    labels: Vec<i64>,
}

impl Targets {
    /// `labels` holds one label for each of the B·T positions, [`IGNORED`] where there is none.
    pub fn new(labels: &[i64]) -> Self {
        let kept = (0i64..).zip(labels.iter().copied()).filter(|(_, label)| *label != IGNORED);
        let (positions, labels) = kept.unzip();
        Self { positions, labels }
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    #[cfg(test)]
    pub fn pairs(&self) -> Vec<(i64, i64)> {
        self.positions.iter().copied().zip(self.labels.iter().copied()).collect()
    }
}

/// The summed loss in nats. Gradients of `loss · scale` are added to every leaf below `hidden` and inside `head`.
///
/// # Shapes
/// `hidden`: (B, T, D); `head`: (n, D) → (n, V).
///
/// # Errors
/// Torch fails, most likely for want of memory.
pub fn backward(
    hidden: &Tensor,
    head: &dyn Fn(&Tensor) -> Result<Tensor>,
    vocab: i64,
    targets: &Targets,
    scale: f64,
) -> Result<f64> {
    let device = hidden.device();
    let width = hidden.size().last().copied().unwrap_or_default();
    let positions = Tensor::f_from_slice(&targets.positions)?.f_to_device(device)?;
    let labels = Tensor::f_from_slice(&targets.labels)?.f_to_device(device)?;
    let selected = hidden.f_reshape([-1, width])?.f_index_select(0, &positions)?; // (n, D)
    let cut = selected.f_detach()?.f_set_requires_grad(true)?;

    let count = targets.len() as i64;
    let slice = (MAX_LOGITS / vocab.max(1)).max(1);
    let mut sum = 0.0;
    let mut start = 0;
    while start < count {
        let length = slice.min(count - start);
        let logits = head(&cut.f_narrow(0, start, length)?)?.f_to_kind(Kind::Float)?; // (n, V)
        let labels = labels.f_narrow(0, start, length)?;
        let loss = logits.f_cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Sum, IGNORED, 0.0)?;
        sum += f64::try_from(&loss)?;
        loss.f_mul_scalar(scale)?.f_backward()?;
        start += length;
    }
    tailor_torch::backward(&[(&selected, Some(&cut.f_grad()?))], false)?;
    Ok(sum)
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

    fn ours(labels: &[i64], scale: f64) -> (f64, Tensor) {
        let (input, mut layer, head, _) = setting();
        layer.zero_grad();
        let hidden = input.matmul(&layer).tanh();
        let sum =
            backward(&hidden, &|x| Ok(x.f_matmul(&head.tr())?), 11, &Targets::new(labels), scale).expect("backward");
        (sum, layer.grad().copy())
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
        assert_eq!(Targets::new(&[IGNORED; 4]).len(), 0);
    }
}
