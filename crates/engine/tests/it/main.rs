//! The engine on tiny random bases: every answer is compared with the model's own, whatever else is in the batch.

mod admission;
mod answers;
mod cache;
mod choosing;
mod demand;
mod fairness;
mod faults;
mod residency;
mod scores;
mod seen;
mod transformers;

use std::collections::BTreeMap;
use std::path::PathBuf;

use tailor_domain::Digest;
use tailor_engine::{EndReason, Engine, EngineOptions, Error, Event, GenerateJob};
use tailor_models::{Base, Greedy, LoadOptions, LoraSet};
use tailor_peft::{Adapter, AdapterConfig, Dtype, LoraPair, PromptEmbeddings, Tensors, WholeTensor};
use tailor_testkit::{LlamaShape, T5Shape, TempDir};
use tokio::sync::mpsc;

/// A base folder, and the same base loaded beside the engine to compare with.
struct TinyBase {
    base: Base,
    folder: TempDir,
}

impl TinyBase {
    fn llama() -> Self {
        tch::set_num_threads(1);
        let folder = TempDir::new();
        LlamaShape::default().write(folder.path(), 1).expect("writes");
        Self { base: Base::load(folder.path(), &LoadOptions::default()).expect("loads"), folder }
    }

    fn t5() -> Self {
        tch::set_num_threads(1);
        let folder = TempDir::new();
        T5Shape::default().write(folder.path(), 2).expect("writes");
        Self { base: Base::load(folder.path(), &LoadOptions::default()).expect("loads"), folder }
    }

    fn all() -> [Self; 2] {
        [Self::llama(), Self::t5()]
    }

    fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    async fn engine(&self, options: EngineOptions) -> Engine {
        // Tests run side by side; more threads than cores would wait for each other.
        let options = EngineOptions { threads: 1, ..options };
        Engine::start(self.path(), options).await.expect("starts")
    }

    /// An adapter of every linear layer, large enough to change most answers; `size` scales it.
    fn adapter(&self, seed: u32, size: f32) -> (Digest, Adapter) {
        let rank = 2 + seed as usize % 3;
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut value = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut pairs = BTreeMap::new();
        for (path, shape) in self.base.linear_shapes() {
            let (in_features, out_features) = (shape.in_features, shape.out_features);
            let a = (0..rank * in_features).map(|_| value() * 0.2).collect();
            let b = (0..rank * out_features).map(|_| value() * size).collect();
            pairs.insert(path, LoraPair { a, b, rank, in_features, out_features });
        }
        let names: Vec<String> = pairs.keys().cloned().collect();
        let task = self.base.family().task_type();
        let config = AdapterConfig::new(task, rank as u32, rank as f64, 0.0, &names).expect("valid");
        let digest = Digest::of(format!("adapter {seed} {size}").as_bytes());
        (digest, Adapter::new(config, pairs).expect("sound"))
    }

    /// A DoRA adapter of every linear layer that brings a head of its own.
    fn dora_with_head(&self, seed: u32) -> (Digest, Adapter) {
        let (_, plain) = self.adapter(seed, 0.2);
        let config = String::from_utf8(plain.config_to_bytes()).expect("ASCII");
        let config = config.replace(r#""use_dora": false"#, r#""use_dora": true"#);
        let config = config.replace(r#""modules_to_save": null"#, r#""modules_to_save": ["lm_head"]"#);
        let config = AdapterConfig::parse(config.as_bytes()).expect("valid");
        let mut tensors = plain.into_tensors();
        let magnitudes = |pair: &LoraPair| (0..pair.out_features).map(|at| 0.5 + (at % 5) as f32 * 0.25).collect();
        tensors.magnitudes = tensors.pairs.iter().map(|(path, pair)| (path.clone(), magnitudes(pair))).collect();
        let shape = self.base.shapes().tensors["lm_head.weight"].clone();
        let values = (0..shape.iter().product::<usize>()).map(|at| ((at * 37) % 101) as f32 * 0.02 - 1.0);
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        tensors.whole.insert("lm_head.weight".into(), WholeTensor { dtype: Dtype::F32, shape, bytes });
        (Digest::of(format!("DoRA {seed}").as_bytes()), Adapter::with_tensors(config, tensors).expect("sound"))
    }

    /// An adapter of virtual tokens and nothing else.
    fn virtual_tokens(&self, seed: u32, count: u32) -> (Digest, Adapter) {
        let width = self.base.embedding_size();
        let task = self.base.family().task_type();
        let config = AdapterConfig::prompt_tuning(task, count, width as u32).expect("valid");
        let value = |at: usize| ((at * 31 + seed as usize * 17) % 101) as f32 * 0.04 - 2.0;
        let rows = count as usize;
        let prompt = PromptEmbeddings { rows, token_dim: width, values: (0..rows * width).map(value).collect() };
        let tensors = Tensors { prompt: Some(prompt), ..Tensors::default() };
        let digest = Digest::of(format!("virtual tokens {seed} {count}").as_bytes());
        (digest, Adapter::with_tensors(config, tensors).expect("sound"))
    }

    /// The model's own greedy answer to one prompt alone.
    fn greedy(&self, prompt: &[u32], adapter: Option<&Adapter>, max_new: usize) -> Vec<u32> {
        let set = adapter.map(|adapter| LoraSet::from_adapter(&self.base, adapter).expect("fits"));
        let greedy = Greedy { max_new, eos: self.base.config().eos_token_ids().to_vec() };
        let answers = self.base.generate_greedy(&[prompt.to_vec()], &greedy, set.as_ref()).expect("generates");
        answers.into_iter().next().expect("one answer")
    }
}

fn prompt(n: u32) -> Vec<u32> {
    (0..1 + n % 7).map(|at| 10 + (n * 11 + at * 17) % 80).collect()
}

fn job(prompt_ids: Vec<u32>, adapter: Option<&Digest>, max_new_tokens: u32) -> GenerateJob {
    GenerateJob::new(prompt_ids, adapter.cloned(), max_new_tokens)
}

type Stream = mpsc::Receiver<Result<Event, Error>>;

/// All tokens and how the sequence ended.
async fn read(mut stream: Stream) -> Result<(Vec<u32>, EndReason), Error> {
    let mut tokens = Vec::new();
    while let Some(event) = stream.recv().await {
        match event? {
            Event::Begun { .. } => assert!(tokens.is_empty(), "it begins once, before its first token"),
            Event::Token { id, .. } => tokens.push(id),
            Event::End { reason } => {
                assert!(stream.recv().await.is_none(), "nothing follows the end");
                return Ok((tokens, reason));
            }
        }
    }
    panic!("the stream ended without an end")
}
