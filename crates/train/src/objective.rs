//! What a step makes small: the cross-entropy of the targets, or DPO's loss of preference pairs.
//!
//! DPO (arXiv 2305.18290 eq. 7) needs the log-probabilities of both answers before it knows what each token's
//! cross-entropy counts in the gradient. So the hidden states are made once, the log-probabilities are read off them
//! without a gradient, and then the same chunked cross-entropy goes backward with those weights. The reference is the
//! base with the adapter switched off: one more forward pass, no second model.

use tailor_domain::PreferenceSpec;
use tailor_domain::spec::Checkpointing;
use tailor_models::{Base, Config, Keeps, Layered, LoraSet, Pass, Result};
use tailor_text::{Example, Preference};
use tailor_torch::LabelWeights as Weights;
use tch::Tensor;

use crate::collate::MicroBatch;
use crate::examples::{Examples, Loaded, Texts};
use crate::loss::{Head, Measured, Picked, Sum, Targets};

/// A base, an adapter that is learning, and how a pass through both is made.
pub struct Objective<'a> {
    pub base: &'a Base,
    pub adapter: &'a LoraSet,
    pub checkpointing: Checkpointing,
    /// NEFTune's α.
    pub noise: f64,
    pub preference: &'a PreferenceSpec,
}

/// What a step's loss is a mean over, so that however the batch is cut into passes the gradient is the same.
#[derive(Debug, Clone, Copy)]
pub struct Whole {
    /// Labels of all sequences, or pairs.
    pub terms: usize,
    /// Labels of all chosen answers.
    pub chosen_labels: usize,
}

impl Whole {
    pub fn of(examples: &Examples<'_>, rows: impl Iterator<Item = usize>) -> Self {
        let labels: Vec<usize> = rows.map(|row| examples.targets(row)).collect();
        match examples.are_pairs() {
            false => Self { terms: labels.iter().sum(), chosen_labels: 0 },
            true => Self { terms: labels.len(), chosen_labels: labels.iter().sum() },
        }
    }
}

/// The rows of one pass, collated and on their way to where the base is.
pub struct Prepared {
    batch: MicroBatch,
    /// All chosen answers, then all rejected ones.
    are_pairs: bool,
}

/// Hidden states, and what has to be gone back through once their gradient is known.
enum Forward<'a> {
    Whole(Tensor),
    Layered(Layered<'a>),
}

impl Objective<'_> {
    /// Collates the rows of a pass. Nothing is waited for, so what comes next can be made ready while a GPU is at work.
    ///
    /// # Errors
    /// libtorch cannot allocate the tensors.
    pub fn prepare(&self, rows: &Loaded) -> Result<Prepared> {
        Ok(match rows.texts() {
            Texts::Single(texts) => Prepared { batch: self.batch(&rows.sequences(texts))?, are_pairs: false },
            Texts::Pairs(pairs) => Prepared { batch: self.batch(&answers(pairs))?, are_pairs: true },
        })
    }

    /// One forward and backward pass over some of a batch's sequences. Returns what they add to the step's loss. A GPU is
    /// waited for only where the loss of preferences asks it for the answers' log-probabilities.
    ///
    /// # Errors
    /// libtorch fails, most likely for want of memory.
    pub fn accumulate(&self, rows: &Prepared, whole: Whole) -> Result<Sum> {
        let keeps = match self.checkpointing {
            Checkpointing::None | Checkpointing::Layers => Keeps::Inputs, // with none nothing asks
            Checkpointing::LayersOnHost => Keeps::ParkedInputs,
            Checkpointing::Selective => Keeps::Products,
        };
        let pass = Pass::training(self.adapter).with_noise(self.noise).keeping(keeps);
        match rows.are_pairs {
            false => self.accumulate_singles(&rows.batch, pass, whole),
            true => self.accumulate_pairs(&rows.batch, &pass, whole),
        }
    }

    fn accumulate_singles(&self, batch: &MicroBatch, pass: Pass<'_>, whole: Whole) -> Result<Sum> {
        let pass = pass.with_texts(batch.texts());
        let logits = |hidden: &Tensor| Ok(self.base.head_as_computed(hidden, &pass));
        let head = Head { logits: &logits, constant: self.base.constant_head(&pass) };
        let forward = self.forward(batch, &pass)?;
        let picked = self.pick(&forward, &batch.targets)?;
        let scale = 1.0 / whole.terms.max(1) as f64;
        let sum = picked.backward(head, Weights::Same(scale))?;
        drop(picked);
        forward.finish()?;
        sum.times(scale)
    }

    fn accumulate_pairs(&self, batch: &MicroBatch, pass: &Pass<'_>, whole: Whole) -> Result<Sum> {
        let logits = |hidden: &Tensor| Ok(self.base.head_as_computed(hidden, pass));
        let head = Head { logits: &logits, constant: self.base.constant_head(pass) };
        let reference = self.reference(batch)?;
        let forward = self.forward(batch, pass)?;
        let picked = self.pick(&forward, &batch.targets)?;
        let policy = picked.log_probs_there(head)?;
        // Waited for once, when both are on their way.
        let reference = summed(&batch.targets, &Vec::<f64>::try_from(&reference)?, batch.rows());
        let policy = summed(&batch.targets, &Vec::<f64>::try_from(&policy)?, batch.rows());
        let pairs = Pairs { policy: &policy, reference: &reference };
        let scale = 1.0 / whole.terms.max(1) as f64;
        let sft = self.preference.sft_weight / whole.chosen_labels.max(1) as f64;
        let mut loss = pairs.losses(self.preference).iter().sum::<f64>() * scale;
        let weights: Vec<f64> = pairs.weights(self.preference).iter().map(|weight| weight * scale).collect();
        let chosen = weights.len() / 2;
        let of_label =
            batch.targets.sequences().into_iter().map(|at| weights[at] + if at < chosen { sft } else { 0.0 });
        let of_label: Vec<f32> = of_label.map(|weight| weight as f32).collect();
        let of_label = tailor_torch::gpu::upload(&Tensor::f_from_slice(&of_label)?, self.base.device())?;
        picked.backward(head, Weights::Each(&of_label))?;
        loss -= sft * policy[..chosen].iter().sum::<f64>();
        drop(picked);
        forward.finish()?;
        Ok(Sum::Known(loss))
    }

    /// The summed loss of some rows and how many of their labels, or pairs, are right; without gradient or dropout.
    ///
    /// # Errors
    /// As [`Self::accumulate`].
    pub fn measure(&self, rows: &Loaded) -> Result<Measured> {
        tch::no_grad(|| {
            let pass = Pass::one(self.adapter);
            let logits = |hidden: &Tensor| Ok(self.base.head(hidden, &pass));
            let head = Head { logits: &logits, constant: None };
            match rows.texts() {
                Texts::Single(texts) => {
                    let batch = self.batch(&rows.sequences(texts))?;
                    let hidden = self.base.hidden(&batch.input(), &pass)?;
                    Picked::new(&hidden, &batch.targets, self.vocab())?.measure(head)
                }
                Texts::Pairs(pairs) => {
                    let batch = self.batch(&answers(pairs))?;
                    let reference = Vec::<f64>::try_from(&self.reference(&batch)?)?;
                    let reference = summed(&batch.targets, &reference, batch.rows());
                    let hidden = self.base.hidden(&batch.input(), &pass)?;
                    let picked = Picked::new(&hidden, &batch.targets, self.vocab())?;
                    let policy = summed(&batch.targets, &picked.log_probs(head)?, reference.len());
                    let pairs = Pairs { policy: &policy, reference: &reference };
                    let correct = pairs.margins(self.preference.beta).iter().filter(|margin| **margin > 0.0).count();
                    let loss = pairs.losses(self.preference).iter().sum();
                    Ok(Measured { loss, correct: correct as u64, labels: rows.len() as u64 })
                }
            }
        })
    }

    /// The base's log-probability of each label, in doubles where the base is.
    fn reference(&self, batch: &MicroBatch) -> Result<Tensor> {
        tch::no_grad(|| {
            let pass = Pass::base();
            let hidden = self.base.hidden(&batch.input(), &pass)?;
            let picked = Picked::new(&hidden, &batch.targets, self.vocab())?;
            let logits = |hidden: &Tensor| Ok(self.base.head(hidden, &pass));
            picked.log_probs_there(Head { logits: &logits, constant: None })
        })
    }

    fn batch(&self, sequences: &[Vec<&Example>]) -> Result<MicroBatch> {
        let start = match self.base.config() {
            Config::T5(config) => config.decoder_start_token_id,
            Config::Decoder(_) => 0, // has no decoder apart
        };
        MicroBatch::new(sequences, start, self.base.device())
    }

    fn forward<'a>(&'a self, batch: &MicroBatch, pass: &'a Pass<'a>) -> Result<Forward<'a>> {
        Ok(match self.checkpointing {
            Checkpointing::None => Forward::Whole(self.base.hidden(&batch.input(), pass)?),
            Checkpointing::Selective | Checkpointing::Layers | Checkpointing::LayersOnHost => {
                Forward::Layered(self.base.hidden_layered(&batch.input(), pass)?)
            }
        })
    }

    fn pick(&self, forward: &Forward<'_>, targets: &Targets) -> Result<Picked> {
        let hidden = match forward {
            Forward::Whole(hidden) => hidden,
            Forward::Layered(layered) => &layered.hidden,
        };
        Picked::new(hidden, targets, self.vocab())
    }

    fn vocab(&self) -> i64 {
        self.base.config().vocab_size()
    }
}

impl Forward<'_> {
    fn finish(self) -> Result<()> {
        match self {
            Self::Whole(_) => Ok(()),
            Self::Layered(layered) => layered.backward(),
        }
    }
}

/// All chosen answers, then all rejected ones, each a sequence of its own.
fn answers(pairs: &[Preference]) -> Vec<Vec<&Example>> {
    let chosen = pairs.iter().map(|pair| vec![&pair.chosen]);
    chosen.chain(pairs.iter().map(|pair| vec![&pair.rejected])).collect()
}

/// The log-probabilities of each sequence's labels, added up.
fn summed(targets: &Targets, log_probs: &[f64], sequences: usize) -> Vec<f64> {
    let mut sums = vec![0.0; sequences];
    for (sequence, log_prob) in targets.sequences().into_iter().zip(log_probs) {
        sums[sequence] += log_prob;
    }
    sums
}

/// Summed log-probabilities of the chosen answers, then of the rejected ones, with and without the adapter.
struct Pairs<'a> {
    policy: &'a [f64],
    reference: &'a [f64],
}

impl Pairs<'_> {
    /// β times how much further the adapter prefers the chosen answer than the base does.
    fn margins(&self, beta: f64) -> Vec<f64> {
        let count = self.policy.len() / 2;
        let gain = |at: usize| self.policy[at] - self.reference[at];
        (0..count).map(|pair| beta * (gain(pair) - gain(count + pair))).collect()
    }

    fn losses(&self, spec: &PreferenceSpec) -> Vec<f64> {
        let smooth = spec.label_smoothing;
        let loss = |m: f64| -(1.0 - smooth) * log_sigmoid(m) - smooth * log_sigmoid(-m);
        self.margins(spec.beta).into_iter().map(loss).collect()
    }

    /// What each answer's summed cross-entropy counts in the gradient: −dL/dlog π.
    fn weights(&self, spec: &PreferenceSpec) -> Vec<f64> {
        let smooth = spec.label_smoothing;
        let slope = |m: f64| (1.0 - smooth) * sigmoid(-m) - smooth * sigmoid(m);
        let chosen: Vec<f64> = self.margins(spec.beta).into_iter().map(|m| spec.beta * slope(m)).collect();
        let rejected = chosen.iter().map(|weight| -weight).collect::<Vec<_>>();
        [chosen, rejected].concat()
    }
}

fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

/// ln(1/(1 + e^−x)), without overflow.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pairs_weights_are_the_slope_of_its_loss() {
        let reference = [-5.0, -7.0, -6.0, -3.0];
        let policy = [-4.0, -8.0, -6.5, -2.0];
        for smooth in [0.0, 0.2] {
            let spec = PreferenceSpec { beta: 0.3, label_smoothing: smooth, ..PreferenceSpec::default() };
            let total = |policy: &[f64]| Pairs { policy, reference: &reference }.losses(&spec).iter().sum::<f64>();
            let weights = Pairs { policy: &policy, reference: &reference }.weights(&spec);
            for at in 0..4 {
                let mut moved = policy;
                moved[at] += 1e-6;
                let slope = (total(&moved) - total(&policy)) / 1e-6;
                assert!((slope + weights[at]).abs() < 1e-5, "answer {at}: {slope} for −{}", weights[at]);
            }
        }
    }

    #[test]
    fn an_untrained_adapter_has_the_loss_of_a_coin() {
        let same = [-5.0, -7.0];
        let losses = Pairs { policy: &same, reference: &same }.losses(&PreferenceSpec::default());
        assert!((losses[0] - 2f64.ln()).abs() < 1e-12);
        assert!(log_sigmoid(-1e4).is_finite() && sigmoid(1e4) == 1.0, "far margins overflow nothing");
    }
}
