//! AdamW (arXiv 1711.05101, algorithm 2) over one flat tensor.
//!
//! An adapter is many small matrices; a step over each would cost more in calls than in arithmetic. So the parameters
//! are views of one f32 buffer, their gradients are gathered into one, and a step is ten operations whatever the rank,
//! the layers or the targets.

use tch::{Device, Kind, TchError, Tensor};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

pub struct AdamW {
    /// All parameters, one after the other; f32.
    flat: Tensor,
    /// Leaves that share `flat`'s memory.
    leaves: Vec<Tensor>,
    first_moment: Tensor,
    second_moment: Tensor,
    weight_decay: f64,
    step: i32,
}

impl AdamW {
    /// Copies `initial` (row-major values and shape of each parameter) into one buffer on `device`.
    ///
    /// # Errors
    /// Torch cannot allocate the buffer or its moments.
    pub fn new(initial: &[(Vec<f32>, Vec<i64>)], weight_decay: f64, device: Device) -> Result<Self, TchError> {
        let values: Vec<f32> = initial.iter().flat_map(|(values, _)| values.iter().copied()).collect();
        let flat = Tensor::f_from_slice(&values)?.f_to_device(device)?;
        let mut leaves = Vec::with_capacity(initial.len());
        let mut start = 0;
        for (values, shape) in initial {
            let length = values.len() as i64;
            let view = flat.f_narrow(0, start, length)?.f_view(shape.as_slice())?;
            leaves.push(view.f_detach()?.f_set_requires_grad(true)?);
            start += length;
        }
        let first_moment = flat.f_zeros_like()?;
        let second_moment = flat.f_zeros_like()?;
        Ok(Self { flat, leaves, first_moment, second_moment, weight_decay, step: 0 })
    }

    /// The parameters as leaves of the graph, in the order given to [`Self::new`].
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
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
        let correction1 = 1.0 - BETA1.powi(self.step);
        let correction2 = 1.0 - BETA2.powi(self.step);
        tch::no_grad(|| {
            let gradient = gradient.f_mul_scalar(scale)?;
            // m ← m + (1 − β1)(g − m);  v ← v + (1 − β2)(g² − v)
            self.first_moment = self.first_moment.f_lerp(&gradient, 1.0 - BETA1)?;
            self.second_moment = self.second_moment.f_lerp(&gradient.f_square()?, 1.0 - BETA2)?;
            let root = (&self.second_moment / correction2).f_sqrt()?.f_add_scalar(EPSILON)?;
            let direction = self.first_moment.f_div(&root)?.f_mul_scalar(learning_rate / correction1)?;
            if self.weight_decay > 0.0 {
                let _ = self.flat.f_mul_scalar_(1.0 - learning_rate * self.weight_decay)?;
            }
            let _ = self.flat.f_sub_(&direction)?;
            Ok(())
        })
    }

    /// Parameters, first and second moments, each as one row of numbers in the order of the leaves.
    ///
    /// # Errors
    /// Torch cannot copy them to the host.
    pub fn state(&self) -> Result<[Vec<f32>; 3], TchError> {
        Ok([on_host(&self.flat)?, on_host(&self.first_moment)?, on_host(&self.second_moment)?])
    }

    /// Goes on after `step` updates from what [`Self::state`] gave.
    ///
    /// # Errors
    /// They are not as many as there are parameters.
    pub fn restore(&mut self, step: u64, state: [&[f32]; 3]) -> Result<(), TchError> {
        tch::no_grad(|| {
            for (tensor, values) in
                [&mut self.flat, &mut self.first_moment, &mut self.second_moment].into_iter().zip(state)
            {
                // In place: the leaves share the parameters' memory.
                tensor.f_copy_(&Tensor::f_from_slice(values)?.f_view(tensor.size().as_slice())?)?;
            }
            self.step = step as i32;
            Ok(())
        })
    }

    /// The values of each parameter, row-major, in the order given to [`Self::new`].
    ///
    /// # Errors
    /// Torch cannot copy them to the host.
    pub fn values(&self) -> Result<Vec<Vec<f32>>, TchError> {
        let all = on_host(&self.flat)?;
        let mut start = 0;
        let mut values = Vec::with_capacity(self.leaves.len());
        for leaf in &self.leaves {
            let end = start + leaf.numel();
            values.push(all[start..end].to_vec());
            start = end;
        }
        Ok(values)
    }
}

fn on_host(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    Vec::<f32>::try_from(&tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn five_steps_equal_the_formula_for_every_parameter() {
        let initial = vec![(vec![0.5, -1.0], vec![2, 1]), (vec![2.0], vec![1])];
        let gradients = [[0.1, -0.2, 3.0], [0.3, 0.2, -1.0], [0.0, 0.1, 0.5], [1e-4, -5.0, 0.0], [0.2, 0.2, 0.2]];
        let mut adam = AdamW::new(&initial, 0.1, Device::Cpu).expect("new");
        for gradient in &gradients {
            let gradient = Tensor::from_slice(&gradient.map(|g| g as f32 * 2.0));
            adam.update(&gradient, 0.5, 1e-2).expect("update");
        }
        let values: Vec<f32> = adam.values().expect("values").concat();
        for (index, start) in [0.5, -1.0, 2.0].into_iter().enumerate() {
            let column: Vec<f64> = gradients.iter().map(|g| g[index]).collect();
            let wanted = reference(start, &column, 1e-2, 0.1);
            assert!((f64::from(values[index]) - wanted).abs() < 1e-6, "{index}: {} for {wanted}", values[index]);
        }
    }

    #[test]
    fn leaves_see_the_update_and_gather_their_gradients_in_order() {
        let mut adam =
            AdamW::new(&[(vec![1.0, 2.0], vec![1, 2]), (vec![3.0], vec![1])], 0.0, Device::Cpu).expect("new");
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
    }
}
