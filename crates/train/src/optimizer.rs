//! AdamW (arXiv 1711.05101, algorithm 2) over one flat tensor.
//!
//! An adapter is many small matrices; a step over each would cost more in calls than in arithmetic. So the parameters
//! are views of one f32 buffer, their gradients are gathered into one, and a step is ten operations whatever the rank,
//! the layers or the targets. What differs from parameter to parameter (LoRA+'s learning rates, the step at which one
//! is set free) is a factor for each value, made only where there is a difference.

use tailor_domain::spec::Optimizer;
use tailor_torch::device::{AdamFactors, AdamStep, adamw, adamw8, has_kernels};
use tailor_torch::gpu::upload;
use tch::{Device, Kind, TchError, Tensor};

use crate::checkpoint::Values;
use crate::moments::Moment;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// A parameter before the first step.
#[derive(Debug, Clone)]
pub struct Initial {
    /// Row-major.
    pub values: Vec<f32>,
    pub shape: Vec<i64>,
    /// Its learning rate as a multiple of the schedule's.
    pub rate: f64,
    /// Steps in which it stays as it is.
    pub frozen_steps: u64,
}

pub struct AdamW {
    /// All parameters, one after the other; f32.
    flat: Tensor,
    /// Leaves that share `flat`'s memory.
    leaves: Vec<Tensor>,
    first_moment: Moment,
    second_moment: Moment,
    weight_decay: f64,
    /// For each value; absent where all are 1.
    rates: Option<Tensor>,
    /// For each leaf; empty where all are 0.
    frozen_steps: Vec<u64>,
    step: u64,
}

impl AdamW {
    /// Copies the initial values into one buffer on `device`.
    ///
    /// # Errors
    /// Torch cannot allocate the buffer or its moments.
    pub fn new(initial: &[Initial], kind: Optimizer, weight_decay: f64, device: Device) -> Result<Self, TchError> {
        let values: Vec<f32> = initial.iter().flat_map(|parameter| parameter.values.iter().copied()).collect();
        let flat = Tensor::f_from_slice(&values)?.f_to_device(device)?;
        let mut leaves = Vec::with_capacity(initial.len());
        let mut start = 0;
        for Initial { values, shape, .. } in initial {
            let length = values.len() as i64;
            let view = flat.f_narrow(0, start, length)?.f_view(shape.as_slice())?;
            leaves.push(view.f_detach()?.f_set_requires_grad(true)?);
            start += length;
        }
        let (first_moment, second_moment) = match kind {
            Optimizer::AdamW | Optimizer::PagedAdamW => (Moment::full(start, device)?, Moment::full(start, device)?),
            Optimizer::AdamW8bit | Optimizer::PagedAdamW8bit => {
                (Moment::blocks(start, true, device)?, Moment::blocks(start, false, device)?)
            }
        };
        let (first_moment, second_moment) = match kind.is_paged() {
            true => (first_moment.paged()?, second_moment.paged()?),
            false => (first_moment, second_moment),
        };
        let rates: Vec<f64> = initial.iter().map(|parameter| parameter.rate).collect();
        let rates = match rates.iter().all(|rate| *rate == 1.0) {
            true => None,
            false => Some(spread(&rates, &leaves, device)?),
        };
        let frozen_steps: Vec<u64> = initial.iter().map(|parameter| parameter.frozen_steps).collect();
        let frozen_steps = if frozen_steps.iter().all(|steps| *steps == 0) { Vec::new() } else { frozen_steps };
        Ok(Self { flat, leaves, first_moment, second_moment, weight_decay, rates, frozen_steps, step: 0 })
    }

    /// The parameters as leaves of the graph, in the order given to [`Self::new`].
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// All parameters in one tensor that shares their memory.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Switches the gradients of frozen parameters off, and those of parameters that learn in the next step on.
    pub fn thaw(&mut self) {
        for (leaf, frozen) in self.leaves.iter_mut().zip(&self.frozen_steps) {
            let _ = leaf.set_requires_grad(self.step >= *frozen);
        }
    }

    /// All gradients in one tensor, in the order of the leaves; an unused leaf's gradient is zero.
    ///
    /// # Errors
    /// Torch cannot allocate it.
    pub fn gathered_gradient(&self) -> Result<Tensor, TchError> {
        let mut parts = Vec::with_capacity(self.leaves.len());
        for leaf in &self.leaves {
            let gradient = leaf.f_grad()?;
            let part = if gradient.defined() { gradient } else { leaf.f_detach()?.f_zeros_like()? };
            parts.push(part.f_reshape([-1])?);
        }
        Tensor::f_cat(&parts, 0)
    }

    /// Forgets the gradients of the step before.
    pub fn zero_gradients(&mut self) {
        for leaf in &mut self.leaves {
            leaf.zero_grad();
        }
    }

    /// One update with `gradient` × `scale`.
    ///
    /// # Errors
    /// Torch cannot allocate a temporary.
    pub fn update(&mut self, gradient: &Tensor, scale: f64, learning_rate: f64) -> Result<(), TchError> {
        self.step += 1;
        let factors = self.factors(learning_rate)?;
        if has_kernels(&self.flat) {
            return tch::no_grad(|| self.update_in_one_launch(gradient, scale, learning_rate, &factors));
        }
        tch::no_grad(|| {
            for slice in self.first_moment.slices() {
                let (start, length) = slice;
                let gradient = gradient.f_narrow(0, start, length)?.f_mul_scalar(scale)?;
                // m ← m + (1 − β1)(g − m);  v ← v + (1 − β2)(g² − v)
                let first = self.first_moment.open(slice)?.f_lerp(&gradient, 1.0 - BETA1)?;
                let second = self.second_moment.open(slice)?.f_lerp(&gradient.f_square()?, 1.0 - BETA2)?;
                let mut flat = self.flat.f_narrow(0, start, length)?;
                match &factors {
                    Factors::Same { rate, correction2 } => {
                        let root = (&second / *correction2).f_sqrt()?.f_add_scalar(EPSILON)?;
                        if self.weight_decay > 0.0 {
                            let _ = flat.f_mul_scalar_(1.0 - learning_rate * self.weight_decay)?;
                        }
                        let _ = flat.f_sub_(&first.f_div(&root)?.f_mul_scalar(*rate)?)?;
                    }
                    Factors::Each { rate, correction2, decay } => {
                        let part = |factor: &Tensor| factor.f_narrow(0, start, length);
                        let root = second.f_div(&part(correction2)?)?.f_sqrt()?.f_add_scalar(EPSILON)?;
                        if self.weight_decay > 0.0 {
                            let _ = flat.f_mul_(&part(decay)?)?;
                        }
                        let _ = flat.f_sub_(&first.f_div(&root)?.f_mul(&part(rate)?)?)?;
                    }
                }
                self.first_moment.close(slice, &first)?;
                self.second_moment.close(slice, &second)?;
            }
            Ok(())
        })
    }

    /// The same by a kernel, for all values at once.
    fn update_in_one_launch(
        &mut self,
        gradient: &Tensor,
        scale: f64,
        learning_rate: f64,
        factors: &Factors,
    ) -> Result<(), TchError> {
        let step = AdamStep {
            values: &self.flat,
            gradient,
            gradient_scale: scale,
            betas: (BETA1, BETA2),
            epsilon: EPSILON,
            factors: match factors {
                Factors::Same { rate, correction2 } => AdamFactors::Same {
                    rate: *rate,
                    correction: *correction2,
                    decay: 1.0 - learning_rate * self.weight_decay,
                },
                Factors::Each { rate, correction2, decay } => {
                    AdamFactors::Each { rates: rate, corrections: correction2, decays: decay }
                }
            },
        };
        let launched = match (&self.first_moment, &self.second_moment) {
            (Moment::Full(first), Moment::Full(second)) => adamw(&step, first, second),
            (Moment::Blocks(first), Moment::Blocks(second)) => adamw8(&step, &first.parts(), &second.parts()),
            (Moment::Full(_), Moment::Blocks(_)) | (Moment::Blocks(_), Moment::Full(_)) => {
                return Err(TchError::Torch("one moment is in 8 bits and the other is not".into()));
            }
        };
        launched.map_err(|error| TchError::Torch(error.to_string()))
    }

    /// What this step's moments are corrected and multiplied with.
    fn factors(&self, learning_rate: f64) -> Result<Factors, TchError> {
        let corrections = |steps: u64| {
            let steps = i32::try_from(steps).unwrap_or(i32::MAX);
            (1.0 - BETA1.powi(steps), 1.0 - BETA2.powi(steps))
        };
        if self.rates.is_none() && self.frozen_steps.is_empty() {
            let (correction1, correction2) = corrections(self.step);
            return Ok(Factors::Same { rate: learning_rate / correction1, correction2 });
        }
        let device = self.flat.device();
        if let (Some(rates), true) = (&self.rates, self.frozen_steps.is_empty()) {
            // The same step for all: made where they are, nothing comes from the host.
            let (correction1, correction2) = corrections(self.step);
            let decay = rates.f_mul_scalar(learning_rate)?.f_mul_scalar(-self.weight_decay)?.f_add_scalar(1.0)?;
            let correction2 = rates.f_full_like(correction2)?;
            return Ok(Factors::Each { rate: rates.f_mul_scalar(learning_rate / correction1)?, correction2, decay });
        }
        let (mut rates, mut correction2s) = (Vec::new(), Vec::new());
        for at in 0..self.leaves.len() {
            let frozen = self.frozen_steps.get(at).copied().unwrap_or(0);
            // Counted from the parameter's own first step: its moments began there.
            let (correction1, correction2) = corrections(self.step.saturating_sub(frozen));
            let learns = self.step > frozen;
            rates.push(if learns { learning_rate / correction1 } else { 0.0 });
            correction2s.push(if learns { correction2 } else { 1.0 });
        }
        let learning: Vec<f64> = rates.iter().map(|rate| if *rate == 0.0 { 0.0 } else { learning_rate }).collect();
        let (mut rate, mut decay) = (spread(&rates, &self.leaves, device)?, spread(&learning, &self.leaves, device)?);
        if let Some(rates) = &self.rates {
            (rate, decay) = (rate.f_mul(rates)?, decay.f_mul(rates)?);
        }
        let decay = decay.f_mul_scalar(-self.weight_decay)?.f_add_scalar(1.0)?;
        Ok(Factors::Each { rate, correction2: spread(&correction2s, &self.leaves, device)?, decay })
    }

    /// What a checkpoint keeps of parameters and moments, by name.
    ///
    /// # Errors
    /// Torch cannot copy them to the host.
    pub fn state(&self) -> Result<Vec<(String, Values)>, TchError> {
        let mut state = vec![("parameters".to_owned(), Values::F32(self.flat_values()?))];
        state.extend(self.first_moment.state("first_moment")?);
        state.extend(self.second_moment.state("second_moment")?);
        Ok(state)
    }

    /// Goes on after `step` updates from what [`Self::state`] gave.
    ///
    /// # Errors
    /// Something is missing, or not as many as there are parameters.
    pub fn restore(&mut self, step: u64, find: &dyn Fn(&str) -> Option<Tensor>) -> Result<(), TchError> {
        let parameters =
            find("parameters").ok_or_else(|| TchError::Torch("the checkpoint has no parameters".into()))?;
        tch::no_grad(|| self.flat.f_copy_(&parameters.f_view(self.flat.size().as_slice())?))?;
        self.first_moment.restore("first_moment", find)?;
        self.second_moment.restore("second_moment", find)?;
        self.step = step;
        Ok(())
    }

    /// All values, one parameter after the other.
    ///
    /// # Errors
    /// Torch cannot copy them to the host.
    pub fn flat_values(&self) -> Result<Vec<f32>, TchError> {
        Vec::<f32>::try_from(&self.flat.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)
    }

    /// `flat` cut into the values of each parameter, row-major, in the order given to [`Self::new`].
    pub fn cut(&self, flat: &[f32]) -> Vec<Vec<f32>> {
        let mut rest = flat;
        let mut values = Vec::with_capacity(self.leaves.len());
        for leaf in &self.leaves {
            let (own, others) = rest.split_at(leaf.numel().min(rest.len()));
            values.push(own.to_vec());
            rest = others;
        }
        values
    }
}

/// One number for all values, or one for each.
enum Factors {
    Same { rate: f64, correction2: f64 },
    Each { rate: Tensor, correction2: Tensor, decay: Tensor },
}

/// One number a leaf → one a value, f32.
fn spread(numbers: &[f64], leaves: &[Tensor], device: Device) -> Result<Tensor, TchError> {
    let numbers = Tensor::f_from_slice(numbers)?.f_to_kind(Kind::Float)?;
    let lengths: Vec<i64> = leaves.iter().map(|leaf| leaf.numel() as i64).collect();
    let lengths = Tensor::f_from_slice(&lengths)?;
    let spread = numbers.f_repeat_interleave_self_tensor(&lengths, 0, None)?;
    upload(&spread, device).map_err(|error| TchError::Torch(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initial(values: &[f32], shape: &[i64]) -> Initial {
        Initial { values: values.to_vec(), shape: shape.to_vec(), rate: 1.0, frozen_steps: 0 }
    }

    fn adam(initial: &[Initial], kind: Optimizer, decay: f64) -> AdamW {
        AdamW::new(initial, kind, decay, Device::Cpu).expect("new")
    }

    /// The reference in f64, one number at a time.
    fn reference(mut w: f64, gradients: &[f64], learning_rate: f64, decay: f64) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        for (index, g) in gradients.iter().enumerate() {
            let t = index as i32 + 1;
            m = BETA1 * m + (1.0 - BETA1) * g;
            v = BETA2 * v + (1.0 - BETA2) * g * g;
            w -= learning_rate * decay * w;
            w -= learning_rate * (m / (1.0 - BETA1.powi(t))) / ((v / (1.0 - BETA2.powi(t))).sqrt() + EPSILON);
        }
        w
    }

    const GRADIENTS: [[f32; 3]; 5] =
        [[0.1, -0.2, 3.0], [0.3, 0.2, -1.0], [0.0, 0.1, 0.5], [1e-4, -5.0, 0.0], [0.2, 0.2, 0.2]];

    /// The values after five steps with those gradients.
    fn five_steps(adam: &mut AdamW) -> Vec<f32> {
        for gradient in &GRADIENTS {
            let gradient = Tensor::from_slice(&gradient.map(|g| g * 2.0));
            adam.update(&gradient, 0.5, 1e-2).expect("update");
        }
        adam.flat_values().expect("values")
    }

    fn column(index: usize, from: usize) -> Vec<f64> {
        GRADIENTS[from..].iter().map(|g| f64::from(g[index])).collect()
    }

    #[test]
    fn five_steps_equal_the_formula_for_every_parameter() {
        let parameters = [initial(&[0.5, -1.0], &[2, 1]), initial(&[2.0], &[1])];
        let values = five_steps(&mut adam(&parameters, Optimizer::AdamW, 0.1));
        for (index, start) in [0.5, -1.0, 2.0].into_iter().enumerate() {
            let wanted = reference(start, &column(index, 0), 1e-2, 0.1);
            assert!((f64::from(values[index]) - wanted).abs() < 1e-6, "{index}: {} for {wanted}", values[index]);
        }
    }

    #[test]
    fn a_parameter_has_its_own_rate_and_its_own_first_step() {
        let mut parameters = [initial(&[0.5, -1.0], &[2, 1]), initial(&[2.0], &[1])];
        parameters[0].rate = 4.0;
        parameters[1].frozen_steps = 2;
        let mut adam = adam(&parameters, Optimizer::AdamW, 0.1);
        let mut gradients = GRADIENTS;
        // Frozen parameters get no gradient.
        gradients[0][2] = 0.0;
        gradients[1][2] = 0.0;
        for gradient in &gradients {
            adam.update(&Tensor::from_slice(gradient), 1.0, 1e-2).expect("update");
        }
        let values = adam.flat_values().expect("values");
        for index in 0..2 {
            let wanted = reference([0.5, -1.0][index], &column(index, 0), 4e-2, 0.1);
            assert!((f64::from(values[index]) - wanted).abs() < 1e-6, "{index}: {} for {wanted}", values[index]);
        }
        let wanted = reference(2.0, &column(2, 2), 1e-2, 0.1);
        assert!((f64::from(values[2]) - wanted).abs() < 1e-6, "as if it had begun later: {} for {wanted}", values[2]);
    }

    #[test]
    fn a_frozen_leaf_asks_for_no_gradient_until_its_step() {
        let mut parameters = [initial(&[1.0], &[1]), initial(&[2.0], &[1])];
        parameters[1].frozen_steps = 1;
        let mut adam = adam(&parameters, Optimizer::AdamW, 0.0);
        adam.thaw();
        assert!(adam.leaves()[0].requires_grad() && !adam.leaves()[1].requires_grad());
        adam.update(&Tensor::from_slice(&[0.5f32, 0.0]), 1.0, 0.1).expect("update");
        assert_eq!(adam.flat_values().expect("values")[1], 2.0);
        adam.thaw();
        assert!(adam.leaves()[1].requires_grad());
    }

    #[test]
    fn eight_bits_go_where_thirty_two_go() {
        tch::manual_seed(9);
        let count = 1000i64;
        let start: Vec<f32> = vec![1.0; count as usize];
        let mut full = adam(&[initial(&start, &[count])], Optimizer::AdamW, 0.0);
        let mut narrow = adam(&[initial(&start, &[count])], Optimizer::AdamW8bit, 0.0);
        let direction = Tensor::randn([count], (Kind::Float, Device::Cpu));
        for _ in 0..50 {
            let noise = Tensor::randn([count], (Kind::Float, Device::Cpu)) * 0.3;
            let gradient = &direction + noise;
            full.update(&gradient, 1.0, 1e-2).expect("update");
            narrow.update(&gradient, 1.0, 1e-2).expect("update");
        }
        let moved = |adam: &AdamW| &adam.flat - 1.0;
        let (full, narrow) = (moved(&full), moved(&narrow));
        let error = f64::try_from((&full - &narrow).norm() / full.norm()).expect("norm");
        assert!(error < 0.05, "{error}");
    }

    #[test]
    fn leaves_see_the_update_and_gather_their_gradients_in_order() {
        let mut adam = adam(&[initial(&[1.0, 2.0], &[1, 2]), initial(&[3.0], &[1])], Optimizer::AdamW, 0.0);
        let loss = (&adam.leaves()[0] * 10.0).sum(Kind::Float);
        loss.backward();
        let gradient = adam.gathered_gradient().expect("gradient");
        assert_eq!(Vec::<f32>::try_from(&gradient).expect("values"), [10.0, 10.0, 0.0]);
        adam.update(&gradient, 1.0, 0.1).expect("update");
        let seen = Vec::<f32>::try_from(adam.leaves()[0].detach().reshape([-1])).expect("values");
        assert!((seen[0] - 0.9).abs() < 1e-6, "the leaf shares the buffer: {seen:?}");
        adam.zero_gradients();
        let gradient = adam.gathered_gradient().expect("gradient");
        assert_eq!(f64::try_from(gradient.abs().sum(Kind::Float)).expect("sum"), 0.0);
        assert_eq!(adam.cut(&[1.0, 2.0, 3.0]), [vec![1.0, 2.0], vec![3.0]]);
    }
}
