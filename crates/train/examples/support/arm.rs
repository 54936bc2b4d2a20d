//! One measured run: a base, a shape of batch, a policy; in a process of its own, since its peak is the process's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tailor_domain::spec::{Checkpointing, Grouping, Optimizer, Precision};
use tailor_domain::{EvaluateSpec, Family, LoraSpec, QuantCode, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, Compute, LoadOptions};
use tailor_plan::Rows;
use tailor_torch::{Memory, PeakMemory};
use tailor_train::{Example, Observer, train};

use crate::support::{figures, figures_of_child};

/// The word that makes a benchmark's program run one arm.
pub const ARM: &str = "--arm";
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/bench/qlora_peer.py");
/// An encoder-decoder's answer, as a share of its input.
const ANSWER: usize = 4;
/// Rows that share a packed sequence.
const PACKED: usize = 4;

#[derive(Debug, Clone)]
pub struct Arm {
    pub folder: PathBuf,
    pub batch: usize,
    pub tokens: usize,
    pub rank: u32,
    pub steps: usize,
    pub checkpointing: Checkpointing,
    pub compute: Precision,
    pub optimizer: Optimizer,
    pub grouping: Grouping,
}

impl Arm {
    pub fn new(folder: &Path, batch: usize, tokens: usize, rank: u32, checkpointing: Checkpointing) -> Self {
        Self {
            folder: folder.to_owned(),
            batch,
            tokens,
            rank,
            steps: 2,
            checkpointing,
            compute: Precision::Bf16,
            optimizer: Optimizer::AdamW,
            grouping: Grouping::Length,
        }
    }

    fn words(&self) -> Vec<OsString> {
        let numbers = [self.batch, self.tokens, self.rank as usize, self.steps].map(|number| number.to_string());
        let names =
            [self.checkpointing.as_str(), self.compute.as_str(), self.optimizer.as_str(), self.grouping.as_str()];
        let words = numbers.into_iter().chain(names.map(str::to_owned)).map(OsString::from);
        [OsString::from(ARM), self.folder.clone().into_os_string()].into_iter().chain(words).collect()
    }

    /// As [`Self::run`] gives them to the program that it starts.
    pub fn parse(words: &[String]) -> Result<Self> {
        let [folder, batch, tokens, rank, steps, checkpointing, compute, optimizer, grouping] = words else {
            bail!("{} words; an arm has 9", words.len())
        };
        let number = |word: &String| word.parse::<usize>().with_context(|| format!("{word} is no number"));
        Ok(Self {
            folder: folder.into(),
            batch: number(batch)?,
            tokens: number(tokens)?,
            rank: number(rank)? as u32,
            steps: number(steps)?,
            checkpointing: checkpointing.parse()?,
            compute: compute.parse()?,
            optimizer: optimizer.parse()?,
            grouping: grouping.parse()?,
        })
    }

    pub fn recipe(&self) -> Recipe {
        let train = TrainSpec {
            batch_rows: self.batch as u32,
            micro_batch_rows: self.batch as u32,
            max_tokens: self.tokens.max(8) as u32,
            max_steps: self.steps as u64,
            epochs: self.steps as f64,
            checkpointing: self.checkpointing,
            precision: self.compute,
            optimizer: self.optimizer,
            grouping: self.grouping,
            ..TrainSpec::default()
        };
        let evaluate = EvaluateSpec { tuning_fraction: 0.0, ..EvaluateSpec::default() };
        Recipe { lora: LoraSpec { rank: self.rank, ..LoraSpec::default() }, train, evaluate, ..Recipe::default() }
    }

    /// What the rows of this arm are, for a plan.
    pub fn rows(&self, family: Family) -> Rows {
        let (batch, tokens) = (self.batch as u64, self.tokens as u64);
        let (input, target) = match family {
            Family::Decoder => (tokens, 0),
            Family::EncoderDecoder => (tokens - tokens / ANSWER as u64, tokens / ANSWER as u64),
        };
        Rows {
            count: if self.grouping == Grouping::Packed { batch * PACKED as u64 } else { batch },
            tokens: batch * tokens,
            longest: tokens,
            longest_input: input,
            longest_target: target,
            most_labels: if target > 0 { target } else { tokens },
        }
    }

    fn examples(&self, family: Family, vocab: usize) -> Vec<Example> {
        let id = |row: usize, at: usize| ((row * 7919 + at * 104_729) % vocab) as u32;
        let ids = |row: usize, tokens: usize| (0..tokens).map(|at| id(row, at)).collect::<Vec<u32>>();
        let (rows, tokens) = match self.grouping {
            Grouping::Length => (self.batch, self.tokens),
            Grouping::Packed => (self.batch * PACKED, self.tokens / PACKED),
        };
        (0..rows)
            .map(|row| match family {
                Family::Decoder => Example::Decoder { ids: ids(row, tokens), in_loss: vec![true; tokens] },
                Family::EncoderDecoder => {
                    let answer = tokens / ANSWER;
                    Example::EncoderDecoder { encoder: ids(row, tokens - answer), labels: ids(row + 1, answer) }
                }
            })
            .collect()
    }

    /// Runs this program again on the arm; gives what it printed.
    pub fn run(&self) -> Result<BTreeMap<String, f64>> {
        figures_of_child(self.words()).with_context(|| format!("{self:?}"))
    }

    /// PEFT and bitsandbytes on the same rows, from the same weights in 16 bit, computing in `compute`.
    pub fn run_peer(&self, dense: &Path) -> Result<BTreeMap<String, f64>> {
        let python = std::env::var("TAILOR_PEER_PYTHON").context("TAILOR_PEER_PYTHON names no Python with peft")?;
        let mut command = Command::new(python);
        command.arg(PEER).arg(dense).arg(tch::get_num_threads().to_string());
        command.args([self.batch, self.tokens, self.rank as usize, self.steps].map(|number| number.to_string()));
        let output = command.args([self.checkpointing.as_str(), self.compute.as_str()]).output()?;
        ensure!(output.status.success(), "the peer failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(figures(&String::from_utf8(output.stdout)?))
    }

    /// In the program that was started: trains, and prints `name value` lines.
    pub fn measure(&self) -> Result<()> {
        let compute = if self.compute == Precision::F32 { Compute::F32 } else { Compute::Bf16 };
        let before = Memory::now()?.resident_bytes;
        let base = Base::load(&self.folder, &LoadOptions { compute, ..LoadOptions::default() })?;
        let examples = self.examples(base.family(), base.config().vocab_size() as usize);
        // From here the high-water mark is that of training, not of loading.
        let _peak = PeakMemory::reset()?;
        let mut seen = Seen::default();
        train(&base, &self.recipe(), &examples, "random", &mut seen)?;
        for (name, value) in [
            ("before", before as f64),
            ("base", base.resident_bytes() as f64),
            ("peak", Memory::now()?.peak_bytes as f64),
            ("tensors", seen.tensors as f64),
            ("first_loss", seen.first_loss),
            ("loss", seen.loss),
            ("first_grad_norm", seen.first_grad_norm),
            ("grad_norm", seen.grad_norm),
            ("tokens_per_second", seen.best_speed),
            ("seconds", (self.batch * self.tokens) as f64 / seen.best_speed),
        ] {
            println!("{name} {value}");
        }
        Ok(())
    }
}

/// `nf4` beside `dense`, and what it is in.
pub fn quantise(dense: &Path, nf4: &Path) -> Result<QuantCode> {
    let options = tailor_quant::QuantOptions::default();
    tailor_quant::quantize_folder(dense, nf4, &options, &mut |_| {})?;
    Ok(options.code)
}

#[derive(Default)]
struct Seen {
    first_loss: f64,
    loss: f64,
    first_grad_norm: f64,
    grad_norm: f64,
    best_speed: f64,
    tensors: u64,
}

impl Observer for Seen {
    fn on_step(&mut self, step: &StepMetrics) {
        if step.step == 1 {
            (self.first_loss, self.first_grad_norm) = (step.loss, step.grad_norm);
        }
        (self.loss, self.grad_norm) = (step.loss, step.grad_norm);
        // The first step finds nothing in the caches.
        if step.step > 1 {
            self.best_speed = self.best_speed.max(step.tokens_per_second);
        }
        self.tensors = tailor_torch::tensor_bytes().peak;
    }
    fn should_stop(&mut self) -> bool {
        false
    }
}
