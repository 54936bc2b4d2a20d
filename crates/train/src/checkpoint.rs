//! Everything that a run's continuation depends on, taken between two steps: on the CPU the run that goes on from it makes
//! the same bits as one that was never stopped.
//!
//! As bytes it is a safetensors file: parameters, moments, the best state so far, the random generator's state, and the
//! rest as JSON in the metadata. Whoever stores it verifies it: here only its form is checked.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use tailor_domain::TuningMetrics;
use tch::{TchError, Tensor};

use crate::error::Error;

const FORMAT: u32 = 2;
const STATE: &str = "tailor_run";

/// A run after [`Checkpoint::step`] of its steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub(crate) state: State,
    pub(crate) tensors: BTreeMap<String, Values>,
}

/// Numbers of one tensor, in one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    U8(Vec<u8>),
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
    /// Sequences in one forward pass: what was found to fit decides the order of sums.
    pub micro_batch: u64,
    /// The measurement that no later one was better than; its parameters are the tensor `best`.
    pub best: Option<TuningMetrics>,
    pub last_tuning: Option<TuningMetrics>,
    /// Measurements since then.
    pub without_improvement: u32,
}

impl Values {
    pub fn tensor(&self) -> Result<Tensor, TchError> {
        match self {
            Self::F32(values) => Tensor::f_from_slice(values),
            Self::U8(values) => Tensor::f_from_slice(values),
        }
    }

    fn view(&self) -> (Dtype, usize, &[u8]) {
        match self {
            Self::F32(values) => (Dtype::F32, values.len(), bytemuck::cast_slice(values)),
            Self::U8(values) => (Dtype::U8, values.len(), values),
        }
    }
}

impl Checkpoint {
    /// Steps that it holds.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// The tensor of this name; none where there is none.
    pub(crate) fn tensor(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name)?.tensor().ok()
    }

    /// # Errors
    /// The library cannot write it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let unwritable = |problem: String| Error::Checkpoint(format!("cannot be written: {problem}"));
        let state = serde_json::to_string(&self.state).map_err(|error| unwritable(error.to_string()))?;
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, values) in &self.tensors {
            let (dtype, count, bytes) = values.view();
            let view = TensorView::new(dtype, vec![count], bytes).map_err(|error| unwritable(error.to_string()))?;
            views.push((name.clone(), view));
        }
        safetensors::serialize(views, Some(HashMap::from([(STATE.to_owned(), state)])))
            .map_err(|error| unwritable(error.to_string()))
    }

    /// # Errors
    /// The bytes are no checkpoint, or one of a format that this version does not know.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let unreadable = |problem: String| Error::Checkpoint(format!("cannot be read: {problem}"));
        let file = SafeTensors::deserialize(bytes).map_err(|error| unreadable(error.to_string()))?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| unreadable(error.to_string()))?;
        let state = metadata.metadata().as_ref().and_then(|metadata| metadata.get(STATE));
        let state = state.ok_or_else(|| unreadable(format!("its metadata has no {STATE}")))?;
        // Read apart from the rest, which another format may have other fields in.
        let Format { format } = serde_json::from_str(state).map_err(|error| unreadable(error.to_string()))?;
        if format != FORMAT {
            return Err(unreadable(format!("format {format}, this version knows {FORMAT}")));
        }
        let state: State = serde_json::from_str(state).map_err(|error| unreadable(error.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in file.tensors() {
            let values = match tensor.dtype() {
                Dtype::F32 => {
                    let numbers = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                    Values::F32(numbers.collect())
                }
                Dtype::U8 => Values::U8(tensor.data().to_vec()),
                other => return Err(unreadable(format!("{name} is {other:?}, neither F32 nor U8"))),
            };
            tensors.insert(name, values);
        }
        Ok(Self { state, tensors })
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl State {
    /// Of a run that has not begun.
    pub fn new(run: &str, micro_batch: u64) -> Self {
        Self {
            format: FORMAT,
            run: run.to_owned(),
            step: 0,
            tokens: 0,
            seconds: 0.0,
            recent_losses: Vec::new(),
            micro_batch,
            best: None,
            last_tuning: None,
            without_improvement: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let best = TuningMetrics { step: 5, loss: 0.1, token_accuracy: 0.75, tokens: 9, best: true };
        let mut state = State::new("run", 4);
        (state.step, state.tokens, state.seconds, state.recent_losses) = (7, 1234, 5.5, vec![0.1, 0.3]);
        (state.best, state.without_improvement) = (Some(best), 2);
        let tensors = [
            ("parameters", Values::F32(vec![1.0, -2.0, f32::MIN_POSITIVE])),
            ("first_moment", Values::F32(vec![0.5, 0.0, -0.0])),
            ("second_moment.codes", Values::U8(vec![0, 128, 255])),
            ("random", Values::U8(vec![1, 2, 3, 255])),
        ];
        Checkpoint { state, tensors: tensors.into_iter().map(|(name, values)| (name.to_owned(), values)).collect() }
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
        other.state.format = 3;
        let error = Checkpoint::from_bytes(&other.to_bytes().expect("written")).expect_err("format").to_string();
        assert!(error.contains("format 3, this version knows 2"), "{error}");
    }
}
