//! Greedy answers to many prompts: rows of like length together, all rows of a batch in one step.

use tailor_models::{Base, Greedy, LoraSet};
use tailor_torch::guarded;

use crate::error::Error;

/// Rows in one batch.
const MAX_ROWS: usize = 64;
/// Positions (prompt and answer) in one batch: what its cache may hold.
const MAX_POSITIONS: usize = 1 << 15;

/// The greedy answer to each prompt, without its end token.
///
/// `progress` is told how many prompts are done after each batch; when it returns false the work stops and no answer is
/// returned.
///
/// # Errors
/// The adapter does not fit the base, a prompt cannot be taken, or the device failed.
pub fn predict(
    base: &Base,
    adapter: Option<&tailor_peft::Adapter>,
    prompts: &[Vec<u32>],
    max_new_tokens: usize,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<Vec<u32>>, Error> {
    let before = || Error::at("before the first prediction");
    let set = adapter.map(|adapter| guarded(|| LoraSet::from_adapter(base, adapter))).transpose().map_err(before())?;
    let greedy = Greedy { max_new: max_new_tokens, eos: base.config().eos_token_ids().to_vec() };
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|row| prompts[*row].len());

    let mut answers = vec![Vec::new(); prompts.len()];
    let mut done = 0;
    for rows in batches(&order, |row| prompts[row].len() + max_new_tokens) {
        let batch: Vec<Vec<u32>> = rows.iter().map(|row| prompts[*row].clone()).collect();
        let place = format!("predictions {} to {}", done + 1, done + rows.len());
        let outcome = guarded(|| tch::no_grad(|| base.generate_greedy(&batch, &greedy, set.as_ref())));
        for (row, answer) in rows.iter().zip(outcome.map_err(Error::at(place))?) {
            answers[*row] = answer;
        }
        done += rows.len();
        if !progress(done, prompts.len()) {
            return Ok(Vec::new());
        }
    }
    Ok(answers)
}

/// Cuts rows (sorted by size) into batches within [`MAX_ROWS`] and [`MAX_POSITIONS`]; a row over the limit goes alone.
fn batches(order: &[usize], size: impl Fn(usize) -> usize) -> Vec<&[usize]> {
    let mut batches = Vec::new();
    let mut start = 0;
    for end in 1..=order.len() {
        let full = match order.get(end) {
            None => true,
            Some(next) => end - start == MAX_ROWS || size(*next) * (end - start + 1) > MAX_POSITIONS,
        };
        if full {
            batches.push(&order[start..end]);
            start = end;
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_row_once_and_keep_their_limits() {
        let sizes: Vec<usize> = (0..300).map(|row| 10 + row * row).collect();
        let order: Vec<usize> = (0..sizes.len()).collect();
        let batches = batches(&order, |row| sizes[row]);
        assert_eq!(batches.concat(), order);
        for batch in batches {
            let positions = batch.len() * batch.iter().map(|row| sizes[*row]).max().unwrap_or(0);
            assert!(batch.len() == 1 || (batch.len() <= MAX_ROWS && positions <= MAX_POSITIONS));
        }
    }
}
