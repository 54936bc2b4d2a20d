//! Training on tiny random bases in 4 bits: what must hold whatever the model.

mod failures;
mod invariance;
mod learning;
mod memory;
mod plan;
mod preference;
mod prompt;
mod properties;
mod ranks;
mod resume;
mod stopping;
mod variants;

use std::path::Path;

use tailor_domain::{EvaluateSpec, LoraSpec, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, Input, LoadOptions, LoraSet, Pass};
use tailor_quant::{QuantOptions, quantize_folder};
use tailor_testkit::{EOS, LlamaShape, T5Shape, TempDir};
use tailor_train::{Example, Observer, Trained, train};
use tch::Tensor;

/// A base in 4 bits, and the folder its packed weights are mapped from.
struct TinyBase {
    base: Base,
    _folder: TempDir,
}

impl TinyBase {
    fn quantized(write: impl FnOnce(&Path)) -> Self {
        // Tests run side by side; more threads than cores would wait for each other.
        tch::set_num_threads(1);
        let folder = TempDir::new();
        let (source, target) = (folder.join("source"), folder.join("nf4"));
        std::fs::create_dir(&source).expect("a folder");
        write(&source);
        quantize_folder(&source, &target, &QuantOptions::default(), &mut |_| {}).expect("quantises");
        let base = Base::load(&target, &LoadOptions::default()).expect("loads");
        assert!(base.linears().iter().any(|linear| linear.quantized), "the base is in 4 bits");
        Self { base, _folder: folder }
    }

    fn llama() -> Self {
        Self::quantized(|folder| LlamaShape::default().write(folder, 1).expect("writes"))
    }

    fn t5() -> Self {
        Self::quantized(|folder| T5Shape::default().write(folder, 2).expect("writes"))
    }

    /// A shape drawn from the seed, its head tied or not.
    fn random_llama(seed: u64) -> Self {
        let draw = |salt: u64, choices: &[usize]| {
            choices[(seed.wrapping_mul(0x9e37_79b9).wrapping_add(salt * 7919) >> 3) as usize % choices.len()]
        };
        let kv_heads = draw(1, &[1, 2, 4]);
        let shape = LlamaShape {
            hidden: draw(2, &[64, 128]),
            layers: draw(3, &[1, 2, 3]),
            feed_forward: draw(4, &[64, 192]),
            heads: 4,
            kv_heads,
            tied: seed.is_multiple_of(2),
            ..LlamaShape::default()
        };
        println!("seed {seed}: {shape:?}");
        Self::quantized(|folder| shape.write(folder, seed).expect("writes"))
    }

    /// As [`Self::random_llama`].
    fn random_t5(seed: u64) -> Self {
        let (layers, heads) = (1 + seed as usize % 3, [2, 4][seed as usize % 2]);
        let shape = T5Shape { layers, heads, ..T5Shape::default() };
        println!("seed {seed}: {shape:?}");
        Self::quantized(|folder| shape.write(folder, seed).expect("writes"))
    }

    /// Both families.
    fn all() -> [Self; 2] {
        [Self::llama(), Self::t5()]
    }

    fn is_decoder(&self) -> bool {
        self.base.family() == tailor_domain::Family::Decoder
    }

    /// A row of this base's family whose answer is `answer` and the end token.
    fn row(&self, prompt: &[u32], answer: &[u32]) -> Example {
        let answer = [answer, &[EOS]].concat();
        if !self.is_decoder() {
            return Example::EncoderDecoder { encoder: prompt.to_vec(), labels: answer };
        }
        let in_loss = (0..prompt.len() + answer.len()).map(|at| at >= prompt.len()).collect();
        Example::Decoder { ids: [prompt, &answer].concat(), in_loss }
    }

    /// Rows of unlike lengths; the answer is the prompt's first tokens, each one higher.
    fn rows(&self, count: u32) -> Vec<Example> {
        (0..count).map(|n| self.row(&prompt(n), &answer(n))).collect()
    }

    /// Rows of unlike lengths drawn from a seed, up to 20 tokens of prompt and 10 of answer.
    fn random_rows(&self, count: u64, seed: u64) -> Vec<Example> {
        let ids = |row: u64, salt: u64, longest: u64| -> Vec<u32> {
            let mixed = |at: u64| {
                (seed + 1).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(row * 977 + salt * 31 + at * 131) >> 7
            };
            (0..1 + mixed(999) % longest).map(|at| 10 + (mixed(at) % 80) as u32).collect()
        };
        (0..count).map(|row| self.row(&ids(row, 1, 20), &ids(row, 2, 10))).collect()
    }

    /// Mean cross-entropy over the rows with the adapter loaded as any server would, dropout off.
    fn loss(&self, adapter: &tailor_peft::Adapter, rows: &[Example]) -> f64 {
        let set = LoraSet::from_adapter(&self.base, adapter).expect("fits");
        let (mut sum, mut count) = (0.0, 0);
        for row in rows {
            let wide =
                |ids: &[u32]| Tensor::from_slice(&ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>()).unsqueeze(0);
            let pass = Pass::one(&set);
            let (hidden, labels) = match row {
                Example::Decoder { ids, in_loss } => {
                    let input = wide(&ids[..ids.len() - 1]);
                    let hidden = self.base.hidden(&Input::Decoder { ids: &input, mask: None }, &pass).expect("hidden");
                    let label = |(id, counts): (&u32, &bool)| if *counts { i64::from(*id) } else { -100 };
                    (hidden, ids.iter().zip(in_loss).skip(1).map(label).collect::<Vec<_>>())
                }
                Example::EncoderDecoder { encoder, labels } => {
                    let shifted = [&[0], &labels[..labels.len() - 1]].concat();
                    let (ids, decoder_ids) = (wide(encoder), wide(&shifted));
                    let input = Input::EncoderDecoder { ids: &ids, mask: None, decoder_ids: &decoder_ids };
                    let hidden = self.base.hidden(&input, &pass).expect("hidden");
                    (hidden, labels.iter().map(|id| i64::from(*id)).collect())
                }
            };
            let logits = self.base.head(&hidden, &pass).squeeze_dim(0);
            let targets = Tensor::from_slice(&labels);
            let loss = logits.cross_entropy_loss(&targets, None::<&Tensor>, tch::Reduction::Sum, -100, 0.0);
            sum += f64::try_from(&loss).expect("a number");
            count += labels.iter().filter(|label| **label >= 0).count();
        }
        sum / count as f64
    }

    fn train(&self, lora: &LoraSpec, spec: &TrainSpec, rows: &[Example]) -> (Trained, Vec<StepMetrics>) {
        self.follow(&recipe(lora, spec), rows)
    }

    fn follow(&self, recipe: &Recipe, rows: &[Example]) -> (Trained, Vec<StepMetrics>) {
        let mut steps = Steps::default();
        let trained = train(&self.base, recipe, rows, "tiny", &mut steps).expect("trains");
        (trained, steps.0)
    }
}

fn prompt(n: u32) -> Vec<u32> {
    (0..2 + n % 5).map(|at| 10 + (n * 7 + at * 13) % 40).collect()
}

fn answer(n: u32) -> Vec<u32> {
    prompt(n).into_iter().take(1 + n as usize % 3).map(|id| id + 1).collect()
}

/// Keeps every step.
#[derive(Default)]
struct Steps(Vec<StepMetrics>);

impl Observer for Steps {
    fn on_step(&mut self, step: &StepMetrics) {
        self.0.push(*step);
    }
    fn should_stop(&mut self) -> bool {
        false
    }
}

fn lora() -> LoraSpec {
    LoraSpec { rank: 4, alpha: 8.0, ..LoraSpec::default() }
}

/// These settings, and all rows to train on.
fn recipe(lora: &LoraSpec, train: &TrainSpec) -> Recipe {
    let evaluate = EvaluateSpec { tuning_fraction: 0.0, ..EvaluateSpec::default() };
    Recipe { lora: lora.clone(), train: train.clone(), evaluate, ..Recipe::default() }
}

fn spec() -> TrainSpec {
    TrainSpec { batch_rows: 8, micro_batch_rows: 8, max_steps: 3, seed: 5, ..TrainSpec::default() }
}
