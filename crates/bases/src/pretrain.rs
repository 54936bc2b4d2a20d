//! The pretraining loop: batches in, a base and its last loss out.

use std::f64::consts::PI;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tailor_models::{Base, Config, Input, Pass};
use tch::{Device, Reduction, Tensor};

use crate::adam::AdamW;
use crate::examples::{Batches, Encoded, IGNORED, padded};
use crate::recipe::Recipe;
use crate::tasks::Tasks;
use crate::tokenizer::unigram;

const WARM_UP: u64 = 200;
/// What is left of the learning rate at the last step.
const FINAL_SHARE: f64 = 0.02;
/// Enough that a head sees little else at first: e⁴ against a text of about ten tokens.
const NEIGHBOUR_BIAS: f64 = 4.0;
const T5_EMBEDDING_DEVIATION: f64 = 0.1;
/// The weight of one step in the loss that is shown.
const SMOOTHING: f64 = 0.01;

/// A finished base and what is said of it.
pub struct Pretrained {
    pub base: Base,
    /// Mean cross-entropy per target token, smoothed over about the last hundred steps, in nats.
    pub loss: f64,
    pub target_tokens: u64,
    pub took: Duration,
}

/// Where a run stands.
pub struct Progress<'a> {
    pub base: &'a Base,
    pub step: u64,
    pub loss: f64,
    pub took: Duration,
}

/// Trains for `steps` steps and calls `report` each hundred steps.
///
/// # Errors
/// The config is refused, an example cannot be tokenised, `report` fails.
pub fn pretrain(recipe: &Recipe, steps: u64, report: &mut dyn FnMut(Progress<'_>) -> Result<()>) -> Result<Pretrained> {
    let config = serde_json::to_vec(&recipe.config)?;
    let base = Base::random(&config, Device::Cpu, recipe.seed as i64).context("the base's config")?;
    start_head_at_the_embedding(&base);
    start_heads_at_neighbours(&base);
    let mut optimizer = AdamW::new(base.parameters().iter().map(|parameter| parameter.tensor.shallow_clone()));
    let tasks = Tasks::new(recipe.seed, recipe.gap, recipe.mixture);
    let mut batches = Batches::new(tasks, &recipe.encoder, recipe.batch);
    let started = Instant::now();
    let mut shown = f64::NAN;
    let mut target_tokens = 0;
    for step in 1..=steps {
        let batch = batches.next_batch()?;
        let (loss, tokens) = loss(&base, &batch)?;
        loss.backward();
        optimizer.step(learning_rate(recipe.learning_rate, step, steps));
        let value = loss.double_value(&[]);
        shown = if shown.is_nan() { value } else { shown + SMOOTHING * (value - shown) };
        target_tokens += tokens;
        if step % 100 == 0 || step == steps {
            report(Progress { base: &base, step, loss: shown, took: started.elapsed() })?;
        }
    }
    Ok(Pretrained { base, loss: shown, target_tokens, took: started.elapsed() })
}

/// Embedding and output layer begin as copies of one another, the output layer scaled to logits of unit size, and are
/// trained apart. A token then is its own likeliest output from the first step, and copying, which takes a small model
/// very long to discover token by token, is learnt once for all of them.
///
/// T5's embeddings of unit size would drown what its layers add to the residual stream, and with it what LoRA can
/// change: they begin small.
fn start_head_at_the_embedding(base: &Base) {
    let find = |name: &str| base.parameters().iter().find(|parameter| parameter.name == name);
    let embedding = find("shared.weight").or_else(|| find("model.embed_tokens.weight"));
    if let (Some(embedding), Some(head)) = (embedding, find("lm_head.weight")) {
        tch::no_grad(|| {
            let unit = &embedding.tensor / embedding.tensor.std(false);
            head.tensor.shallow_clone().copy_(&(&unit * (base.config().hidden_size() as f64).powf(-0.5)));
            if matches!(base.config(), Config::T5(_)) {
                embedding.tensor.shallow_clone().copy_(&(unit * T5_EMBEDDING_DEVIATION));
            }
        });
    }
}

/// T5 has no positions but these biases, shared by the layers of a stack, and from a random start it long reads a text
/// as a bag of words. So one head begins at the token before and one at the token after (in the decoder, at the one before
/// that); the others are free. More such heads would be lost to whatever lies further off.
fn start_heads_at_neighbours(base: &Base) {
    for parameter in base.parameters() {
        // (buckets, H); bucket n < 8 is n tokens back; in the encoder bucket 16 + n is n tokens ahead.
        let buckets: [i64; 2] = match parameter.name.as_str() {
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" => [1, 17],
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" => [1, 2],
            _ => continue,
        };
        tch::no_grad(|| {
            for (head, bucket) in buckets.into_iter().enumerate() {
                let _ = parameter.tensor.get(bucket).get(head as i64).fill_(NEIGHBOUR_BIAS);
            }
        });
    }
}

/// Linear warm-up, then a cosine.
fn learning_rate(peak: f64, step: u64, steps: u64) -> f64 {
    let warm_up = (step as f64 / WARM_UP as f64).min(1.0);
    let cosine = 0.5 * (1.0 + (PI * step as f64 / steps as f64).cos());
    peak * warm_up * (FINAL_SHARE + (1.0 - FINAL_SHARE) * cosine)
}

/// The mean loss over the labelled positions, and their number.
fn loss(base: &Base, batch: &[Encoded]) -> Result<(Tensor, u64)> {
    let rows = batch.len() as i64;
    let read: Vec<&[i64]> = batch.iter().map(|encoded| encoded.read.as_slice()).collect();
    let labels: Vec<&[i64]> = batch.iter().map(|encoded| encoded.labels.as_slice()).collect();
    let (ids, mask, width) = padded(&read, unigram::PAD);
    let ids = Tensor::from_slice(&ids).view([rows, width]); // (B, T)
    let mask = Tensor::from_slice(&mask).view([rows, width]); // (B, T)
    let hidden = match base.config() {
        Config::Decoder(_) => base.hidden(&Input::Decoder { ids: &ids, mask: Some(&mask) }, &Pass::base())?,
        Config::T5(_) => {
            let source: Vec<&[i64]> = batch.iter().map(|encoded| encoded.source.as_slice()).collect();
            let (source, source_mask, source_width) = padded(&source, unigram::PAD);
            let source = Tensor::from_slice(&source).view([rows, source_width]); // (B, Se)
            let source_mask = Tensor::from_slice(&source_mask).view([rows, source_width]); // (B, Se)
            let input = Input::EncoderDecoder { ids: &source, mask: Some(&source_mask), decoder_ids: &ids };
            base.hidden(&input, &Pass::base())?
        }
    };
    let (labels, _, _) = padded(&labels, IGNORED);
    let kept: Vec<(i64, i64)> = (0i64..).zip(labels).filter(|(_, label)| *label != IGNORED).collect();
    let (positions, labels): (Vec<i64>, Vec<i64>) = kept.into_iter().unzip();
    let depth = base.config().hidden_size();
    let picked = hidden.reshape([-1, depth]).index_select(0, &Tensor::from_slice(&positions)); // (N, D)
    let logits = base.head(&picked, &Pass::base()); // (N, V)
    let loss = logits.cross_entropy_loss(&Tensor::from_slice(&labels), None::<&Tensor>, Reduction::Mean, IGNORED, 0.0);
    Ok((loss, labels.len() as u64))
}
