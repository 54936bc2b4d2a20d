//! The whole answer: memory by part, where it fits, time and money, the dearer ways, and what to change.

use tailor_domain::spec::{Checkpointing, Grouping, Optimizer};
use tailor_domain::{Invalid, QuantCode, Recipe};

use crate::Result;
use crate::adapter::Adapter;
use crate::calibration::Calibration;
use crate::device::{Device, DeviceKind};
use crate::memory::Memory;
use crate::nearest::{Change, nearest};
use crate::settings::{Compute, Rows, Settings};
use crate::shape::Shape;
use crate::work::Work;

/// Of what a batch of like lengths holds, as a multiple of its tokens: padding.
const PADDING: f64 = 1.05;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub shape: &'a Shape,
    pub recipe: &'a Recipe,
    pub code: QuantCode,
    /// As the base was added: bf16 or f32.
    pub dtype: &'a str,
    pub rows: Rows,
    /// Trainers that have said what they run on.
    pub trainers: &'a [Calibration],
    /// Cards to compare.
    pub cards: &'a [Device],
    pub price_per_hour: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub parameters: u64,
    pub trainable: u64,
    pub compute: Compute,
    pub steps: u64,
    pub tokens: u64,
    /// On each trainer's own device, then on each card.
    pub fits: Vec<Fit>,
    /// Whether some trainer's own device holds it; None where no trainer has said what it has.
    pub fits_a_trainer: Option<bool>,
    pub ways: Vec<Way>,
    /// What to change so that it fits the largest trainer, or the largest card where no trainer is known; empty where it fits.
    pub nearest: Vec<Change>,
}

/// A job on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    pub device: Device,
    /// Whether it is a trainer's.
    pub own: bool,
    pub memory: Memory,
    /// Sequences in one pass: as asked, or the most that fit.
    pub micro_batch: u64,
    /// What a device of this kind cannot do, however much memory it has.
    pub unable: Option<Invalid>,
    pub fits: bool,
    /// Of training; None where nothing was measured on such a device.
    pub seconds: Option<f64>,
    pub cost: Option<f64>,
}

/// Another way to the same end, for comparison: what it takes on the first device of the list.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    pub name: &'static str,
    pub bytes: u64,
    pub seconds: Option<f64>,
    pub cost: Option<f64>,
    /// The smallest card of the list that holds it.
    pub smallest: Option<String>,
}

/// # Errors
/// The recipe chooses no layer of the base, or the base's type is not known.
pub fn plan(question: &Question<'_>) -> Result<Plan> {
    let job = Job::new(question)?;
    let own = question.trainers.iter().map(|trainer| job.on(&trainer.device, Some(trainer)));
    let fits: Vec<Fit> = own.chain(question.cards.iter().map(|card| job.on(card, None))).collect();
    let fits_a_trainer = (!question.trainers.is_empty()).then(|| fits.iter().any(|fit| fit.own && fit.fits));
    let largest = largest_trainer(&fits).map(|fit| fit.device.clone());
    let goal = match (fits_a_trainer, largest) {
        (Some(false), largest) => largest,
        (None, _) if !fits.iter().any(|fit| fit.fits) => {
            question.cards.iter().max_by_key(|card| card.memory_bytes).cloned()
        }
        _ => None,
    };
    let nearest = match goal {
        Some(device) => nearest(question, &device)?,
        None => Vec::new(),
    };
    let (steps, tokens) = (job.steps(), job.tokens());
    Ok(Plan {
        parameters: question.shape.parameters(),
        trainable: job.adapter.values(),
        compute: job.compute,
        steps,
        tokens,
        ways: job.ways(&fits),
        fits_a_trainer,
        nearest,
        fits,
    })
}

/// What a job needs on a device, with as many sequences in a pass as asked for or as fit.
///
/// # Errors
/// The recipe chooses no layer of the base, or the base's type is not known.
pub fn memory_on(question: &Question<'_>, device: &Device) -> Result<Memory> {
    Ok(needs(question, device)?.0)
}

/// What a job needs on a device, with as many sequences in a pass as asked for or as fit.
pub(crate) fn needs(question: &Question<'_>, device: &Device) -> Result<(Memory, u64)> {
    Ok(Job::new(question)?.memory_on(device, question.code))
}

struct Job<'a> {
    question: Question<'a>,
    adapter: Adapter,
    compute: Compute,
}

impl<'a> Job<'a> {
    fn new(question: &Question<'a>) -> Result<Self> {
        let adapter = Adapter::of(question.shape, question.recipe)?;
        let compute = Compute::of(question.recipe.train.precision, question.dtype)?;
        Ok(Self { question: *question, adapter, compute })
    }

    /// The same job on a base in 16 bits.
    fn in_16_bits(&self) -> Self {
        Self { question: self.question, adapter: self.adapter.clone(), compute: Compute::Bf16 }
    }

    fn settings(&self, code: QuantCode, rows: &Rows, sequences: u64) -> Settings {
        Settings::of(self.question.recipe, self.question.shape.family, code, self.compute, rows, sequences)
    }

    fn memory_on(&self, device: &Device, code: QuantCode) -> (Memory, u64) {
        let train = &self.question.recipe.train;
        let share = self.share(u64::from(train.batch_rows));
        let asked = u64::from(train.micro_batch_rows).min(share);
        let mut sequences = if asked == 0 { share } else { asked };
        loop {
            let settings = self.settings(code, &self.question.rows, sequences);
            let memory = Memory::of(self.question.shape, &self.adapter, &settings, device.kind);
            if asked > 0 || sequences == 1 || memory.total() <= device.memory_bytes {
                return (memory, sequences);
            }
            sequences = sequences.div_ceil(2);
        }
    }

    fn on(&self, device: &Device, trainer: Option<&Calibration>) -> Fit {
        let (memory, micro_batch) = self.memory_on(device, self.question.code);
        let unable = check_device(self.question.recipe, device).err();
        let seconds = trainer.and_then(|trainer| self.seconds(trainer, micro_batch, self.question.code, false));
        Fit {
            device: device.clone(),
            own: trainer.is_some(),
            fits: unable.is_none() && memory.total() <= device.memory_bytes,
            unable,
            memory,
            micro_batch,
            cost: seconds.and_then(|seconds| self.cost(seconds)),
            seconds,
        }
    }

    fn cost(&self, seconds: f64) -> Option<f64> {
        let price_per_hour = self.question.price_per_hour * f64::from(self.question.recipe.train.ranks.max(1));
        (price_per_hour > 0.0).then(|| seconds / 3600.0 * price_per_hour)
    }

    /// Sequences of a batch that the largest rank's share has.
    fn share(&self, batch: u64) -> u64 {
        batch.div_ceil(u64::from(self.question.recipe.train.ranks.max(1)))
    }

    /// Sequences in an epoch.
    fn sequences(&self) -> u64 {
        let (rows, train) = (&self.question.rows, &self.question.recipe.train);
        let evaluate = &self.question.recipe.evaluate;
        let aside = ((rows.count as f64 * evaluate.tuning_fraction) as u64).min(u64::from(evaluate.max_tuning_rows));
        let count = rows.count.saturating_sub(aside);
        match train.grouping {
            Grouping::Length => count,
            Grouping::Packed => rows.tokens.div_ceil(u64::from(train.max_tokens)).min(count),
        }
    }

    fn steps(&self) -> u64 {
        let train = &self.question.recipe.train;
        let per_epoch = self.sequences().div_ceil(u64::from(train.batch_rows).max(1));
        let by_epochs = (train.epochs * per_epoch as f64).ceil() as u64;
        let by_tokens = match train.max_train_tokens {
            0 => u64::MAX,
            tokens => tokens.div_ceil((self.tokens_a_step() as u64).max(1)),
        };
        let by_steps = if train.max_steps == 0 { u64::MAX } else { train.max_steps };
        by_epochs.min(by_tokens).min(by_steps).max(1)
    }

    fn tokens_a_step(&self) -> f64 {
        let rows = &self.question.rows;
        let batch = u64::from(self.question.recipe.train.batch_rows).min(self.sequences().max(1));
        rows.tokens as f64 / self.sequences().max(1) as f64 * batch as f64
    }

    fn tokens(&self) -> u64 {
        (self.steps() as f64 * self.tokens_a_step()) as u64
    }

    /// Of all steps on a trainer's device, rows of the mean length.
    fn seconds(&self, trainer: &Calibration, micro_batch: u64, code: QuantCode, full: bool) -> Option<f64> {
        let rates = trainer.rates(self.compute)?;
        let (rows, train) = (self.question.rows, &self.question.recipe.train);
        let sequences = self.sequences().max(1);
        let batch = u64::from(train.batch_rows).min(sequences);
        let mean = rows.tokens as f64 / sequences as f64;
        let share = (mean * PADDING / rows.longest.max(1) as f64).min(1.0);
        let scaled = |longest: u64| (longest as f64 * share).ceil() as u64;
        let average = match train.grouping {
            Grouping::Packed => rows,
            Grouping::Length => Rows {
                longest: scaled(rows.longest),
                longest_input: scaled(rows.longest_input),
                longest_target: scaled(rows.longest_target),
                most_labels: scaled(rows.most_labels),
                ..rows
            },
        };
        let share = self.share(batch);
        let settings = self.settings(code, &average, micro_batch.min(share));
        let passes = share as f64 / micro_batch.min(share).max(1) as f64;
        let step = Work::of_step(self.question.shape, &self.adapter, &settings, passes);
        let step = if full { step.of_full_step() } else { step };
        Some(step.seconds(rates) * self.steps() as f64)
    }

    /// 4 bits against 16, and against training everything.
    fn ways(&self, fits: &[Fit]) -> Vec<Way> {
        let shape = self.question.shape;
        let first = fits.first().map(|fit| (fit.device.kind, fit.micro_batch));
        let batch = u64::from(self.question.recipe.train.batch_rows);
        let (kind, micro_batch) = first.unwrap_or((DeviceKind::Gpu, self.share(batch)));
        let dense = self.in_16_bits();
        let of = |job: &Self, code| {
            let settings = job.settings(code, &self.question.rows, micro_batch);
            Memory::of(shape, &self.adapter, &settings, kind)
        };
        let dense_memory = of(&dense, QuantCode::None);
        let full = full_fine_tuning(&dense_memory, shape);
        let trainer = self.question.trainers.first();
        let way = |name, bytes: u64, job: &Self, code, is_full| {
            let seconds = trainer.and_then(|trainer| job.seconds(trainer, micro_batch, code, is_full));
            let holding = self.question.cards.iter().filter(|card| card.memory_bytes >= bytes);
            Way {
                name,
                bytes,
                cost: seconds.and_then(|seconds| self.cost(seconds)),
                seconds,
                smallest: holding.min_by_key(|card| card.memory_bytes).map(|card| card.name.clone()),
            }
        };
        let code = self.question.code;
        vec![
            way("this job", of(self, code).total(), self, code, false),
            way("LoRA on the base in 16 bits", dense_memory.total(), &dense, QuantCode::None, false),
            way("full fine-tuning", full, &dense, QuantCode::None, true),
        ]
    }
}

/// # Errors
/// The setting that only another kind of device knows.
pub(crate) fn check_device(recipe: &Recipe, device: &Device) -> Result<(), Invalid> {
    recipe.train.check_device(device.kind == DeviceKind::Gpu)
}

/// The trainer that a job is made to fit: the largest of those that can do what it asks for, or of all.
fn largest_trainer(fits: &[Fit]) -> Option<&Fit> {
    fits.iter().filter(|fit| fit.own).max_by_key(|fit| (fit.unable.is_none(), fit.device.memory_bytes))
}

/// All weights in 16 bits with gradients in 16, and in f32 a master copy and two moments: 16 bytes a parameter (ZeRO,
/// arXiv 1910.02054 §3.1); activations as with LoRA on every layer, whose inputs are kept too.
fn full_fine_tuning(dense: &Memory, shape: &Shape) -> u64 {
    let states = dense.runtime + 16 * shape.parameters();
    states.saturating_add(dense.activations).saturating_add(dense.working_set)
}

impl Plan {
    /// Why no trainer can run it, in words for a person; None where one can, or none is known.
    pub fn refusal(&self) -> Option<String> {
        if self.fits_a_trainer != Some(false) {
            return None;
        }
        let largest = largest_trainer(&self.fits)?;
        if let Some(unable) = &largest.unable {
            return Some(format!("no trainer can: {unable}"));
        }
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let mut parts = largest.memory.parts();
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let parts: Vec<_> = parts.iter().take(3).map(|(name, bytes)| format!("{name} {:.1}", gib(*bytes))).collect();
        let remedy = match self.nearest.first() {
            Some(change) => format!("set {}", change.words()),
            None => "no change of the settings alone makes it fit; take a smaller base or a larger machine".to_owned(),
        };
        Some(format!(
            "the job needs {:.1} GiB ({} GiB, …) and the largest trainer, {}, has {:.1} GiB; {remedy}",
            gib(largest.memory.total()),
            parts.join(", "),
            largest.device.name,
            gib(largest.device.memory_bytes),
        ))
    }
}

/// Settings that cost least to give up come first; of those that only a GPU knows, what serves on a device of this kind.
pub(crate) fn cheaper(recipe: &Recipe, compute: Compute, kind: DeviceKind) -> Vec<(&'static str, String, Recipe)> {
    let mut ways = Vec::new();
    let mut push = |field: &'static str, value: String, change: &dyn Fn(&mut Recipe)| {
        let mut changed = recipe.clone();
        change(&mut changed);
        ways.push((field, value, changed));
    };
    let train = &recipe.train;
    let is_gpu = kind == DeviceKind::Gpu;
    if train.checkpointing == Checkpointing::LayersOnHost && !is_gpu {
        push("train.checkpointing", "layers".into(), &|recipe| recipe.train.checkpointing = Checkpointing::Layers);
    }
    if train.optimizer.is_paged() && !is_gpu {
        let plain = if train.optimizer.in_8_bits() { Optimizer::AdamW8bit } else { Optimizer::AdamW };
        push("train.optimizer", plain.to_string(), &|recipe| recipe.train.optimizer = plain);
    }
    let mut rows = if train.micro_batch_rows == 0 { 1 } else { train.micro_batch_rows };
    while rows > 1 {
        rows = rows.div_ceil(2);
        push("train.micro_batch_rows", rows.to_string(), &|recipe| recipe.train.micro_batch_rows = rows);
    }
    if train.checkpointing == Checkpointing::None {
        let selective = Checkpointing::Selective;
        push("train.checkpointing", selective.to_string(), &|recipe| recipe.train.checkpointing = selective);
    }
    if matches!(train.checkpointing, Checkpointing::None | Checkpointing::Selective) {
        push("train.checkpointing", "layers".into(), &|recipe| recipe.train.checkpointing = Checkpointing::Layers);
    }
    if train.checkpointing != Checkpointing::LayersOnHost && is_gpu {
        let aside = Checkpointing::LayersOnHost;
        push("train.checkpointing", aside.to_string(), &|recipe| recipe.train.checkpointing = aside);
    }
    let optimizer = match train.optimizer {
        // The same numbers, and nothing is left of them on a GPU that 8 bits could save.
        Optimizer::AdamW if is_gpu => Some(Optimizer::PagedAdamW),
        Optimizer::AdamW8bit if is_gpu => Some(Optimizer::PagedAdamW8bit),
        Optimizer::AdamW => Some(Optimizer::AdamW8bit),
        Optimizer::AdamW8bit | Optimizer::PagedAdamW | Optimizer::PagedAdamW8bit => None,
    };
    if let Some(optimizer) = optimizer {
        push("train.optimizer", optimizer.to_string(), &|recipe| recipe.train.optimizer = optimizer);
    }
    if compute == Compute::F32 {
        let bf16 = tailor_domain::spec::Precision::Bf16;
        push("train.precision", "bf16".into(), &|recipe| recipe.train.precision = bf16);
    }
    let mut tokens = train.max_tokens;
    while tokens >= 256 {
        tokens /= 2;
        push("train.max_tokens", tokens.to_string(), &|recipe| recipe.train.max_tokens = tokens);
    }
    let mut rank = recipe.lora.rank;
    while rank > 4 && !recipe.prompt_tuning.is_on() {
        rank /= 2;
        push("lora.rank", rank.to_string(), &|recipe| recipe.lora.rank = rank);
    }
    ways
}

#[cfg(test)]
mod tests;
