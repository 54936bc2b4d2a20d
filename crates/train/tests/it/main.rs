//! Training on tiny random bases in 4 bits: what must hold whatever the model.

mod failures;
mod learning;
mod properties;
mod resume;

use std::path::Path;

use tailor_domain::{EvaluateSpec, LoraSpec, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, LoadOptions};
use tailor_quant::{QuantOptions, quantize_folder};
use tailor_testkit::{EOS, LlamaShape, T5Shape, TempDir};
use tailor_train::{Example, Observer, Trained, train};

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

    fn train(&self, lora: &LoraSpec, spec: &TrainSpec, rows: &[Example]) -> (Trained, Vec<StepMetrics>) {
        let mut steps = Steps::default();
        let trained = train(&self.base, &recipe(lora, spec), rows, "tiny", &mut steps).expect("trains");
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
