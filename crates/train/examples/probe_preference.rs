//! DPO's loss and gradient of some pairs: for `tests/parity/check_preference.py`, which compares.
//!
//! `cargo run -p tailor-train --example probe_preference -- FOLDER ADAPTER PAIRS.json OUTPUT.json`
//!
//! Pairs: `{"preference": {…}, "pairs": [{"prompt": [ids], "chosen": [ids], "rejected": [ids]}]}`, each answer with its end
//! token. Output: `{"loss": …, "gradient": {name: [numbers]}}`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tailor_domain::spec::Objective;
use tailor_domain::{PreferenceSpec, Recipe, TrainSpec};
use tailor_models::{Base, LoadOptions};
use tailor_peft::{Adapter, Limits};
use tailor_train::{Example, Preference, gradient};

#[derive(Deserialize)]
struct Input {
    preference: PreferenceSpec,
    pairs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, adapter, pairs, output] = arguments.as_slice() else {
        bail!("usage: probe_preference FOLDER ADAPTER PAIRS.json OUTPUT.json");
    };
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let base = Base::load(Path::new(folder), &LoadOptions::default())?;
    let adapter = Path::new(adapter);
    let (config, weights) =
        (read(&adapter.join("adapter_config.json"))?, read(&adapter.join("adapter_model.safetensors"))?);
    let adapter = Adapter::from_bytes(&config, &weights, &Limits::default())?;
    let input: Input = serde_json::from_slice(&read(Path::new(pairs))?)?;
    let answer = |prompt: &[u32], answer: &[u32]| {
        let in_loss = (0..prompt.len() + answer.len()).map(|at| at >= prompt.len()).collect();
        Example::Decoder { ids: [prompt, answer].concat(), in_loss }
    };
    let pair = |pair: &Pair| Preference {
        chosen: answer(&pair.prompt, &pair.chosen),
        rejected: answer(&pair.prompt, &pair.rejected),
    };
    let pairs: Vec<Preference> = input.pairs.iter().map(pair).collect();
    let train = TrainSpec { objective: Objective::Dpo, ..TrainSpec::default() };
    let recipe = Recipe { train, preference: input.preference, ..Recipe::default() };
    let found = gradient(&base, &recipe, &adapter, pairs.as_slice())?;
    let document = serde_json::json!({ "loss": found.loss, "gradient": found.by_parameter });
    Ok(std::fs::write(output, document.to_string())?)
}
