//! AdamW (arXiv 1711.05101, algorithm 2) over the parameters of a whole base, with clipping by the global norm.

use tch::{Kind, Tensor};

const BETA1: f64 = 0.9;
/// Below the usual 0.999: pretraining is short, and the variance must forget its first steps.
const BETA2: f64 = 0.98;
const EPSILON: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.01;
const MAX_NORM: f64 = 1.0;

pub struct AdamW {
    slots: Vec<Slot>,
    step: i32,
}

struct Slot {
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
}

impl AdamW {
    /// `parameters` are leaves that require gradients.
    pub fn new(parameters: impl IntoIterator<Item = Tensor>) -> Self {
        let slots = parameters
            .into_iter()
            .map(|parameter| Slot {
                first: parameter.zeros_like().detach(),
                second: parameter.zeros_like().detach(),
                parameter,
            })
            .collect();
        Self { slots, step: 0 }
    }

    /// One update from the gradients that the backward pass left, which it then clears. Gives their norm.
    pub fn step(&mut self, learning_rate: f64) -> f64 {
        self.step += 1;
        let correction1 = 1.0 - BETA1.powi(self.step);
        let correction2 = 1.0 - BETA2.powi(self.step);
        let gradients: Vec<Tensor> = self.slots.iter().map(|slot| slot.parameter.grad()).collect();
        let norm = global_norm(&gradients);
        let scale = if norm > MAX_NORM { MAX_NORM / norm } else { 1.0 };
        tch::no_grad(|| {
            for (slot, gradient) in self.slots.iter_mut().zip(&gradients).filter(|(_, gradient)| gradient.defined()) {
                let gradient = gradient * scale;
                let _ = slot.first.lerp_(&gradient, 1.0 - BETA1);
                let _ = slot.second.lerp_(&gradient.square(), 1.0 - BETA2);
                let root = (&slot.second / correction2).sqrt() + EPSILON;
                let direction = &slot.first / root * (learning_rate / correction1);
                if slot.parameter.dim() > 1 {
                    let _ = slot.parameter.g_mul_scalar_(1.0 - learning_rate * WEIGHT_DECAY);
                }
                let _ = slot.parameter.g_sub_(&direction);
                slot.parameter.zero_grad();
            }
        });
        norm
    }
}

fn global_norm(gradients: &[Tensor]) -> f64 {
    let squares: Vec<Tensor> = gradients
        .iter()
        .filter(|gradient| gradient.defined())
        .map(|gradient| gradient.square().sum(Kind::Float))
        .collect();
    if squares.is_empty() { 0.0 } else { Tensor::stack(&squares, 0).sum(Kind::Float).sqrt().double_value(&[]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_minimum_of_a_bowl() {
        let weight = Tensor::from_slice(&[3.0f32, -2.0]).view([1, 2]).set_requires_grad(true);
        let mut adam = AdamW::new([weight.shallow_clone()]);
        for _ in 0..400 {
            (&weight - 1.0).square().sum(Kind::Float).backward();
            adam.step(0.05);
        }
        let off = (&weight - 1.0).abs().max().double_value(&[]);
        assert!(off < 0.02, "{off} away");
    }
}
