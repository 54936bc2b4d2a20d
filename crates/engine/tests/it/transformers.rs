//! Greedy answers of the real transformers, for every family (tests/golden/models): token for token, whatever else is in the
//! batch and however the prompts are cut.

use std::collections::HashMap;
use std::path::PathBuf;

use tailor_engine::{Engine, EngineOptions};
use tch::{Kind, Tensor};

use crate::{job, read};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models")
}

/// Prompts with transformers' answers to them; empty where the case has none.
fn golden(name: &str) -> Vec<(Vec<u32>, Vec<u32>)> {
    let read = Tensor::read_safetensors(folder().join(name).join("golden.safetensors")).expect("a golden file");
    let tensors: HashMap<String, Tensor> = read.into_iter().collect();
    let Some(greedy) = tensors.get("greedy") else { return Vec::new() };
    let row = |tensor: &Tensor, at: i64| Vec::<i64>::try_from(tensor.get(at)).expect("ids");
    (0..greedy.size()[0])
        .map(|at| {
            let real = tensors["mask"].get(at).sum(Kind::Int64).int64_value(&[]) as usize;
            let prompt = row(&tensors["ids"], at).into_iter().take(real).map(|id| id as u32).collect();
            // After the end there is padding.
            let answer = row(greedy, at).into_iter().take_while(|id| *id >= 0).map(|id| id as u32).collect();
            (prompt, answer)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn greedy_answers_are_those_of_transformers_in_any_company() {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .expect("the golden bases")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    let mut compared = 0;
    for name in names {
        let rows = golden(&name);
        if rows.is_empty() {
            continue;
        }
        let options = EngineOptions { threads: 1, max_step_tokens: 5, max_batch: 4, ..EngineOptions::default() };
        let engine = Engine::start(folder().join(&name), options).await.expect("starts");
        let eos = engine.info().eos_ids;
        let mut streams = Vec::new();
        // Each twice, so that some are read from the cache, and more than fit at once.
        for (prompt, answer) in rows.iter().chain(&rows) {
            streams.push((answer, engine.generate(job(prompt.clone(), None, 10)).await.expect("accepted")));
        }
        for (answer, stream) in streams {
            let wanted: Vec<u32> = answer.iter().copied().take_while(|id| !eos.contains(id)).collect();
            assert_eq!(read(stream).await.expect("answers").0, wanted, "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 40, "{compared} answers were compared");
}
