//! From rows of ids to the tensors of one pass, padded on the right.

use std::rc::Rc;

use tailor_models::{Input, Result, Texts};
use tailor_text::Example;
use tch::{Device, Tensor};

use crate::loss::{IGNORED, Targets};

/// What one forward and backward pass takes.
pub struct MicroBatch {
    /// (B, T): a decoder's tokens, or those of an encoder-decoder's decoder.
    stream: Tensor,
    /// (B, T): where rows are packed, the number of each token's row in its sequence, 0 for padding.
    texts: Option<Tensor>,
    /// The same, known on the host.
    starts: Option<Rc<Texts>>,
    encoder: Option<Encoder>,
    pub targets: Targets,
}

/// # Shapes
/// (B, Se) both; the mask is 1 for a token and 0 for padding, absent where nothing is padded.
struct Encoder {
    ids: Tensor,
    mask: Option<Tensor>,
}

/// One sequence in the making.
#[derive(Default)]
struct Sequence {
    stream: Vec<i64>,
    labels: Vec<i64>,
    texts: Vec<i64>,
}

impl Sequence {
    /// Each token is predicted from those before it: the last is no input, the first no label.
    fn push(&mut self, ids: &[u32], in_loss: &[bool]) {
        let text = self.texts.last().map_or(1, |last| last + 1);
        let label = |(id, counts): (&u32, &bool)| if *counts { i64::from(*id) } else { IGNORED };
        self.labels.extend(ids.iter().zip(in_loss).skip(1).map(label));
        self.stream.extend(wide(&ids[..ids.len().saturating_sub(1)]));
        self.texts.resize(self.stream.len(), text);
    }
}

impl MicroBatch {
    /// `start` is the token that an encoder-decoder's decoder begins with. All rows are of one family; a sequence of
    /// more than one row is a decoder's.
    ///
    /// # Errors
    /// Torch cannot allocate the tensors.
    pub fn new(sequences: &[Vec<&Example>], start: u32, device: Device) -> Result<Self> {
        let mut encoder = Vec::new();
        let mut all = Vec::with_capacity(sequences.len());
        for rows in sequences {
            let mut sequence = Sequence::default();
            for row in rows {
                match row {
                    Example::Decoder { ids, in_loss } => sequence.push(ids, in_loss),
                    Example::EncoderDecoder { encoder: input, labels: answer } => {
                        encoder.push(wide(input));
                        let answer = wide(answer);
                        let shifted = std::iter::once(i64::from(start)).chain(answer.iter().copied());
                        sequence.stream.extend(shifted.take(answer.len()));
                        sequence.labels.extend(answer);
                    }
                }
            }
            all.push(sequence);
        }
        // Padding stands on the right, where a causal model has no way to see it, and has no label: rows by themselves
        // need no mask. Packed ones must not see each other; the encoder sees both ways.
        let packed = sequences.iter().any(|rows| rows.len() > 1);
        let texts = all.iter_mut().map(|sequence| std::mem::take(&mut sequence.texts)).collect();
        let (texts, starts) = if packed {
            let (numbers, shape) = pad(texts, 0);
            let starts = Texts::new(&numbers, shape[1] as usize, device)?;
            (Some(matrix((numbers, shape), device)?), Some(Rc::new(starts)))
        } else {
            (None, None)
        };
        let encoder = if encoder.is_empty() { None } else { Some(Encoder::new(encoder, device)?) };
        let (streams, labels): (Vec<_>, Vec<_>) =
            all.into_iter().map(|sequence| (sequence.stream, sequence.labels)).unzip();
        let (labels, [_, width]) = pad(labels, IGNORED);
        Ok(Self {
            stream: matrix(pad(streams, 0), device)?,
            texts,
            starts,
            encoder,
            targets: Targets::new(&labels, width),
        })
    }

    /// B.
    pub fn rows(&self) -> usize {
        self.stream.size().first().map_or(0, |rows| *rows as usize)
    }

    /// Where the texts of packed rows begin.
    pub fn texts(&self) -> Option<Rc<Texts>> {
        self.starts.clone()
    }

    pub fn input(&self) -> Input<'_> {
        match &self.encoder {
            None => Input::Decoder { ids: &self.stream, mask: self.texts.as_ref() },
            Some(Encoder { ids, mask }) => {
                Input::EncoderDecoder { ids, mask: mask.as_ref(), decoder_ids: &self.stream }
            }
        }
    }
}

impl Encoder {
    fn new(rows: Vec<Vec<i64>>, device: Device) -> Result<Self> {
        let real = rows.iter().map(|row| vec![1; row.len()]).collect();
        let (real, shape) = pad(real, 0);
        let mask = if real.contains(&0) { Some(matrix((real, shape), device)?) } else { None };
        Ok(Self { ids: matrix(pad(rows, 0), device)?, mask })
    }
}

fn wide(ids: &[u32]) -> Vec<i64> {
    ids.iter().map(|id| i64::from(*id)).collect()
}

/// The rows one after the other, each as long as the longest, and the shape (B, T).
fn pad(rows: Vec<Vec<i64>>, value: i64) -> (Vec<i64>, [i64; 2]) {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut flat = Vec::with_capacity(rows.len() * longest);
    for (index, row) in rows.iter().enumerate() {
        flat.extend_from_slice(row);
        flat.resize((index + 1) * longest, value);
    }
    (flat, [rows.len() as i64, longest as i64])
}

fn matrix((values, shape): (Vec<i64>, [i64; 2]), device: Device) -> Result<Tensor> {
    Ok(tailor_torch::gpu::upload(&Tensor::f_from_slice(&values)?.f_view(shape)?, device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(tensor: &Tensor) -> Vec<Vec<i64>> {
        Vec::<Vec<i64>>::try_from(tensor).expect("a matrix")
    }

    #[test]
    fn a_decoder_predicts_each_counted_token_from_those_before_it() {
        let long = Example::Decoder { ids: vec![5, 6, 7, 8], in_loss: vec![false, false, true, true] };
        let short = Example::Decoder { ids: vec![5, 9], in_loss: vec![true, true] };
        let batch = MicroBatch::new(&[vec![&long], vec![&short]], 0, Device::Cpu).expect("collates");
        let Input::Decoder { ids: stream, mask } = batch.input() else { panic!("a decoder's input") };
        assert_eq!(ids(stream), [[5, 6, 7], [5, 0, 0]]);
        assert!(mask.is_none(), "what is padded on the right is never seen");
        assert_eq!(batch.targets.pairs(), [(1, 7), (2, 8), (3, 9)], "nothing predicts the first token");
    }

    #[test]
    fn packed_rows_are_numbered_and_predict_nothing_of_each_other() {
        let long = Example::Decoder { ids: vec![5, 6, 7, 8], in_loss: vec![false, false, true, true] };
        let short = Example::Decoder { ids: vec![5, 9], in_loss: vec![true, true] };
        let batch = MicroBatch::new(&[vec![&long, &short], vec![&short]], 0, Device::Cpu).expect("collates");
        let Input::Decoder { ids: stream, mask } = batch.input() else { panic!("a decoder's input") };
        assert_eq!(ids(stream), [[5, 6, 7, 5], [5, 0, 0, 0]]);
        assert_eq!(ids(mask.expect("packed")), [[1, 1, 1, 2], [1, 0, 0, 0]]);
        assert_eq!(batch.targets.pairs(), [(1, 7), (2, 8), (3, 9), (4, 9)]);
    }

    #[test]
    fn an_encoder_decoders_labels_are_its_input_one_later() {
        let long = Example::EncoderDecoder { encoder: vec![3], labels: vec![7, 8, 1] };
        let short = Example::EncoderDecoder { encoder: vec![3, 4], labels: vec![9, 1] };
        let batch = MicroBatch::new(&[vec![&long], vec![&short]], 0, Device::Cpu).expect("collates");
        let Input::EncoderDecoder { ids: encoder_ids, mask, decoder_ids } = batch.input() else {
            panic!("an encoder-decoder's input")
        };
        assert_eq!(ids(encoder_ids), [[3, 0], [3, 4]]);
        assert_eq!(ids(mask.expect("padded")), [[1, 0], [1, 1]]);
        assert_eq!(ids(decoder_ids), [[0, 7, 8], [0, 9, 0]]);
        assert_eq!(batch.targets.pairs(), [(0, 7), (1, 8), (2, 1), (3, 9), (4, 1)]);
    }

    #[test]
    fn inputs_of_one_length_need_no_mask() {
        let row = Example::EncoderDecoder { encoder: vec![3, 4], labels: vec![7] };
        let batch = MicroBatch::new(&[vec![&row], vec![&row]], 0, Device::Cpu).expect("collates");
        assert!(matches!(batch.input(), Input::EncoderDecoder { mask: None, .. }));
    }
}
