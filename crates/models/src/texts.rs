//! Where the texts of a packed batch begin, known on the host: attention then needs no mask of T × T and no work between
//! texts (arXiv 2307.08691 with sequence starts), and nobody has to ask the device.

use tailor_torch::device::attend_texts;
use tailor_torch::gpu::upload;
use tch::{Device, Kind, Tensor};

use crate::attention::{heads_last, unheads};
use crate::{Error, Result};

/// Runs of tokens that see one another. Padding is a text of its own, which nobody reads.
pub struct Texts {
    lengths: Vec<i64>,
    longest: i64,
    /// i32 [texts + 1]
    starts: Tensor,
    /// [B, T]: each token's place in its text.
    positions: Tensor,
}

impl Texts {
    /// `numbers` holds for each of the B·T tokens the number of its text within its sequence, 0 where it is padding, as
    /// the mask in [`crate::Input::Decoder`] does; `width` is T.
    ///
    /// # Errors
    /// No whole sequences, or more tokens than i32 counts; no memory.
    pub fn new(numbers: &[i64], width: usize, device: Device) -> Result<Self> {
        if width == 0 || numbers.is_empty() || !numbers.len().is_multiple_of(width) {
            return Err(Error::Request(format!("{} tokens are no sequences of {width}", numbers.len())));
        }
        let mut lengths = Vec::new();
        let mut positions = Vec::with_capacity(numbers.len());
        for sequence in numbers.chunks(width) {
            for text in sequence.chunk_by(|left, right| left == right) {
                lengths.push(text.len() as i64);
                positions.extend(0..text.len() as i64);
            }
        }
        let mut starts = vec![0i32];
        let mut at = 0i64;
        for length in &lengths {
            at += length;
            let start = i32::try_from(at);
            starts.push(
                start.map_err(|_| Error::Request(format!("{at} tokens in one pass; the limit is {}", i32::MAX)))?,
            );
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let shape = [(numbers.len() / width) as i64, width as i64];
        let positions = upload(&Tensor::f_from_slice(&positions)?.f_view(shape)?, device)?;
        Ok(Self { lengths, longest, starts: upload(&Tensor::f_from_slice(&starts)?, device)?, positions })
    }

    /// B·T.
    pub fn tokens(&self) -> usize {
        self.positions.numel()
    }

    /// [B, T]
    pub(crate) fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// Causal attention within each text.
    ///
    /// # Shapes
    /// `q` [B, H, T, Dh], `k` and `v` [B, K, T, Dh] → [B, T, H·Dh]
    pub(crate) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Tensor {
        let size = q.size();
        let [flat_q, flat_k, flat_v] = [q, k, v].map(heads_last); // [B·T, H or K, Dh]
        if q.device().is_cuda() && q.kind() == Kind::BFloat16 {
            let attended = attend_texts(&flat_q, &flat_k, &flat_v, &self.starts, self.longest, scale, true);
            let attended = attended.unwrap_or_else(|error| panic!("{error}")); // [B·T, H, Dh]
            return attended.reshape([size[0], size[2], -1]);
        }
        let mut at = 0;
        let attended = self.lengths.iter().map(|&length| {
            let part = |x: &Tensor| x.narrow(0, at, length).transpose(0, 1).unsqueeze(0); // [1, H or K, length, Dh]
            let [q, k, v] = [&flat_q, &flat_k, &flat_v].map(part);
            at += length;
            let attended = tailor_torch::attend(&q, &k, &v, None, true, scale);
            unheads(&attended.unwrap_or_else(|error| panic!("{error}")))
        });
        Tensor::cat(&attended.collect::<Vec<_>>(), 1).view([size[0], size[2], -1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Mask, attend, causal_mask, positions};

    #[test]
    fn texts_one_after_the_other_see_what_the_mask_lets_them_see() {
        tch::manual_seed(5);
        let numbers = [1i64, 1, 1, 2, 2, 3, 1, 1, 2, 2, 0, 0];
        let keys = Tensor::from_slice(&numbers).view([2, 6]);
        let texts = Texts::new(&numbers, 6, Device::Cpu).expect("two sequences");
        assert_eq!((texts.tokens(), texts.longest), (12, 3));
        assert_eq!(Vec::<i32>::try_from(&texts.starts).expect("starts"), [0, 3, 5, 6, 8, 10, 12]);
        let real = keys.ne(0);
        assert!(texts.positions().masked_select(&real).equal(&positions(&keys, 6).masked_select(&real)));
        let random = |heads: i64| Tensor::randn([2, heads, 6, 8], (Kind::Float, Device::Cpu));
        let (q, k, v) = (random(4), random(2), random(2));
        let masked = attend(&q, &k, &v, &Mask::Given(causal_mask(&keys, 6, None)), 0.3, None);
        let ours = texts.attend(&q, &k, &v, 0.3);
        let real = real.unsqueeze(-1);
        assert!((ours * &real).allclose(&(masked * &real), 1e-5, 1e-6, false));
    }

    #[test]
    fn tokens_that_are_no_whole_sequences_are_refused() {
        for (count, width) in [(5, 2), (0, 4), (4, 0)] {
            let error = Texts::new(&vec![1; count], width, Device::Cpu).map(|_| ()).expect_err("refused").to_string();
            assert!(error.contains("are no sequences of"), "{error}");
        }
    }
}
