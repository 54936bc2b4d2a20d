//! Log-probabilities of given tokens: one forward pass over the whole sequence.

use tailor_models::{Base, Config, Input, LoraSet, Pass, Result};
use tch::{Kind, Tensor};

use crate::job::ScoreJob;

/// Logits in one slice: 64 MiB of f32.
const MAX_LOGITS: i64 = 1 << 24;

/// ln p(token | what stands before it) of each token; None for a decoder's very first.
///
/// # Errors
/// The model cannot take the tokens, or the device failed.
pub fn score(base: &Base, job: &ScoreJob, set: Option<&LoraSet>) -> Result<Vec<Option<f32>>> {
    let row = |ids: &mut dyn Iterator<Item = u32>| -> Result<Tensor> {
        let ids: Vec<i64> = ids.map(i64::from).collect();
        Ok(Tensor::f_from_slice(&ids)?.f_unsqueeze(0)?.f_to_device(base.device())?) // (1, T)
    };
    let pass = Pass::maybe(set);
    let tokens = &job.token_ids;
    let before_last = || tokens.iter().copied().take(tokens.len().saturating_sub(1));
    let (hidden, scored) = match base.config() {
        Config::Decoder(_) => {
            // With a prompt every token is predicted; without, all but the first.
            let scored = tokens.len() - usize::from(job.prompt_ids.is_empty());
            if scored == 0 {
                return Ok(vec![None]);
            }
            let ids = row(&mut job.prompt_ids.iter().copied().chain(before_last()))?;
            (base.hidden(&Input::Decoder { ids: &ids, mask: None }, &pass)?, scored)
        }
        Config::T5(config) => {
            let ids = row(&mut job.prompt_ids.iter().copied())?;
            let decoder_ids = row(&mut std::iter::once(config.decoder_start_token_id).chain(before_last()))?;
            let input = Input::EncoderDecoder { ids: &ids, mask: None, decoder_ids: &decoder_ids };
            (base.hidden(&input, &pass)?, tokens.len())
        }
    };
    let positions = hidden.size()[1];
    let predicting = hidden.f_squeeze_dim(0)?.f_narrow(0, positions - scored as i64, scored as i64)?; // (n, D)
    let labels: Vec<i64> = tokens[tokens.len() - scored..].iter().map(|id| i64::from(*id)).collect();
    let labels = Tensor::f_from_slice(&labels)?.f_to_device(base.device())?;
    let mut scores = vec![None; tokens.len() - scored];
    scores.extend(log_probabilities(base, &predicting, &labels, &pass)?.into_iter().map(Some));
    Ok(scores)
}

/// # Shapes
/// `hidden`: (n, D), `labels`: (n)
fn log_probabilities(base: &Base, hidden: &Tensor, labels: &Tensor, pass: &Pass<'_>) -> Result<Vec<f32>> {
    let count = labels.size1()?;
    let slice = (MAX_LOGITS / base.config().vocab_size().max(1)).max(1);
    let mut found = Vec::with_capacity(count as usize);
    let mut start = 0;
    while start < count {
        let length = slice.min(count - start);
        let logits = base.head(&hidden.f_narrow(0, start, length)?, pass); // (n, V)
        let labels = labels.f_narrow(0, start, length)?.f_unsqueeze(1)?; // (n, 1)
        let chosen = logits.f_log_softmax(-1, Kind::Float)?.f_gather(1, &labels, false)?.f_squeeze_dim(1)?;
        found.extend(Vec::<f32>::try_from(&chosen)?);
        start += length;
    }
    Ok(found)
}
