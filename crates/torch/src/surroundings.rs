//! What libtorch keeps for the whole process or thread, and pieces of work that take turns on a thread must not share.

use crate::{Result, rng_state, set_rng_state};

/// What one piece of work left behind at the end of its last turn.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Of the generator that dropout and noise draw from. None before the first turn: whoever needs certain numbers seeds it.
    random: Option<Vec<u8>>,
}

impl Surroundings {
    /// Runs `work` as if nothing else had run since its last turn: it draws on where it stopped drawing, and computes
    /// gradients although somebody else may have been thrown out where none were computed.
    ///
    /// # Errors
    /// libtorch does not give or take the generator's state. The work may have been done all the same.
    pub fn within<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        if let Some(random) = &self.random {
            set_rng_state(random)?;
        }
        let done = tch::with_grad(work);
        self.random = Some(rng_state()?);
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn draw() -> Vec<f32> {
        Vec::try_from(Tensor::rand([3], (Kind::Float, Device::Cpu))).expect("numbers")
    }

    // One test, since the generator is one.
    #[test]
    fn each_goes_on_drawing_where_it_stopped_and_computes_gradients() {
        let alone = |seed| {
            tch::manual_seed(seed);
            [draw(), draw(), draw()].concat()
        };
        let (first, second) = (alone(1), alone(2));
        let (mut one, mut two) = (Surroundings::default(), Surroundings::default());
        let (mut ones, mut twos) = (Vec::new(), Vec::new());
        one.within(|| tch::manual_seed(1)).expect("seeds");
        two.within(|| tch::manual_seed(2)).expect("seeds");
        for _ in 0..3 {
            ones.extend(one.within(draw).expect("draws"));
            let thrown = std::panic::catch_unwind(|| tch::no_grad(|| panic!("in the middle")));
            assert!(thrown.is_err());
            twos.extend(two.within(draw).expect("draws"));
            let leaf = Tensor::from(2f32).set_requires_grad(true);
            assert!(two.within(|| (&leaf * 3.0).requires_grad()).expect("computes"));
        }
        assert_eq!((ones, twos), (first, second));
    }
}
