//! Everything that a run's continuation depends on, taken between two steps: on the CPU the run that goes on from it makes
//! the same bits as one that was never stopped.
//!
//! As bytes it is a safetensors file: parameters and both moments (f32), the random generator's state, and the rest as
//! JSON in the metadata. Whoever stores it verifies it: here only its form is checked.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::error::Error;

const FORMAT: u32 = 1;
const STATE: &str = "tailor_run";
const PARAMETERS: &str = "parameters";
const FIRST_MOMENT: &str = "first_moment";
const SECOND_MOMENT: &str = "second_moment";
const RANDOM: &str = "random";

/// A run after [`Checkpoint::step`] of its steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub(crate) state: State,
    /// The parameters and their moments, in the order of the modules; A before B.
    pub(crate) parameters: Vec<f32>,
    pub(crate) first_moment: Vec<f32>,
    pub(crate) second_moment: Vec<f32>,
    /// Of the generator that dropout draws from.
    pub(crate) random: Vec<u8>,
}

/// What is no tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub format: u32,
    /// What the run is: settings, rows and modules. A checkpoint of another run is never gone on from.
    pub run: String,
    pub step: u64,
    pub tokens: u64,
    /// Time spent in the steps so far.
    pub seconds: f64,
    /// Losses of the last steps, oldest first.
    pub recent_losses: Vec<f64>,
}

impl Checkpoint {
    /// Steps that it holds.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// # Errors
    /// The library cannot write it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let unwritable = |problem: String| Error::Checkpoint(format!("cannot be written: {problem}"));
        let state = serde_json::to_string(&self.state).map_err(|error| unwritable(error.to_string()))?;
        let mut tensors = Vec::new();
        for (name, values) in
            [(PARAMETERS, &self.parameters), (FIRST_MOMENT, &self.first_moment), (SECOND_MOMENT, &self.second_moment)]
        {
            tensors.push((name, Dtype::F32, vec![values.len()], bytemuck::cast_slice::<f32, u8>(values)));
        }
        tensors.push((RANDOM, Dtype::U8, vec![self.random.len()], self.random.as_slice()));
        let view = |(name, dtype, shape, bytes)| TensorView::new(dtype, shape, bytes).map(|view| (name, view));
        let views = tensors.into_iter().map(view).collect::<Result<Vec<_>, _>>();
        let views = views.map_err(|error| unwritable(error.to_string()))?;
        safetensors::serialize(views, Some(HashMap::from([(STATE.to_owned(), state)])))
            .map_err(|error| unwritable(error.to_string()))
    }

    /// # Errors
    /// The bytes are no checkpoint, or one of a format that this version does not know.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let unreadable = |problem: String| Error::Checkpoint(format!("cannot be read: {problem}"));
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| unreadable(error.to_string()))?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| unreadable(error.to_string()))?;
        let state = metadata.metadata().as_ref().and_then(|metadata| metadata.get(STATE));
        let state = state.ok_or_else(|| unreadable(format!("its metadata has no {STATE}")))?;
        let state: State = serde_json::from_str(state).map_err(|error| unreadable(error.to_string()))?;
        if state.format != FORMAT {
            return Err(unreadable(format!("format {}, this version knows {FORMAT}", state.format)));
        }
        let tensor = |name: &str, dtype: Dtype| match tensors.tensor(name) {
            Ok(tensor) if tensor.dtype() == dtype => Ok(tensor.data().to_vec()),
            Ok(tensor) => Err(unreadable(format!("{name} is {:?}, not {dtype:?}", tensor.dtype()))),
            Err(error) => Err(unreadable(format!("{name}: {error}"))),
        };
        let floats = |name: &str| -> Result<Vec<f32>, Error> {
            let bytes = tensor(name, Dtype::F32)?;
            Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        let checkpoint = Self {
            state,
            parameters: floats(PARAMETERS)?,
            first_moment: floats(FIRST_MOMENT)?,
            second_moment: floats(SECOND_MOMENT)?,
            random: tensor(RANDOM, Dtype::U8)?,
        };
        let count = checkpoint.parameters.len();
        if checkpoint.first_moment.len() != count || checkpoint.second_moment.len() != count {
            return Err(unreadable(format!("its moments are not as many as its {count} parameters")));
        }
        Ok(checkpoint)
    }
}

impl State {
    pub fn new(run: &str, step: u64, tokens: u64, seconds: f64, recent_losses: Vec<f64>) -> Self {
        Self { format: FORMAT, run: run.to_owned(), step, tokens, seconds, recent_losses }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            state: State::new("run", 7, 1234, 5.5, vec![0.1, 0.3]),
            parameters: vec![1.0, -2.0, f32::MIN_POSITIVE],
            first_moment: vec![0.5, 0.0, -0.0],
            second_moment: vec![1e-30, 2.0, 3.0],
            random: vec![1, 2, 3, 255],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = checkpoint().to_bytes().expect("written");
        assert_eq!(Checkpoint::from_bytes(&bytes).expect("read"), checkpoint());
        assert_eq!(bytes, checkpoint().to_bytes().expect("written"), "the same bytes each time");
    }

    #[test]
    fn what_is_no_checkpoint_is_refused_with_the_reason() {
        let whole = checkpoint().to_bytes().expect("written");
        for length in [0, 7, 8, 100, whole.len() - 1] {
            let error = Checkpoint::from_bytes(&whole[..length]).expect_err("cut off").to_string();
            assert!(error.contains("cannot be read"), "{length}: {error}");
        }
        let mut other = checkpoint();
        other.state.format = 2;
        let error = Checkpoint::from_bytes(&other.to_bytes().expect("written")).expect_err("format").to_string();
        assert!(error.contains("format 2, this version knows 1"), "{error}");
        let mut other = checkpoint();
        other.first_moment.pop();
        let error = Checkpoint::from_bytes(&other.to_bytes().expect("written")).expect_err("moments").to_string();
        assert!(error.contains("not as many as its 3 parameters"), "{error}");
    }
}
