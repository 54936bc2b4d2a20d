//! What `tailor-plan` reads out of a config.json is what the models make of it, family by family.

use std::path::{Path, PathBuf};

use tailor_domain::{QuantCode, Recipe};
use tailor_models::{Base, Compute, Greedy, LoadOptions};
use tailor_plan::{Adapter, Shape};
use tailor_quant::{QuantOptions, quantize_folder};
use tailor_testkit::{LlamaShape, T5Shape, TempDir};
use tailor_train::Example;

use crate::{TinyBase, train};

fn golden() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    let entries = std::fs::read_dir(folder).expect("the golden models");
    entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.join("config.json").exists()).collect()
}

fn shape(folder: &Path) -> Shape {
    Shape::parse(&std::fs::read(folder.join("config.json")).expect("config.json")).expect("a known family")
}

#[test]
fn every_familys_layers_and_parameters_are_those_of_the_loaded_model() {
    let models = golden();
    assert!(models.len() >= 12, "{models:?}");
    for folder in models {
        let (shape, base) = (shape(&folder), Base::load(&folder, &LoadOptions::default()).expect("loads"));
        let planned: Vec<_> = shape.linears.iter().map(|l| (l.path.as_str(), l.input as i64, l.out as i64)).collect();
        let loaded: Vec<_> = base.linears().iter().map(|l| (l.path.as_str(), l.in_features, l.out_features)).collect();
        let sorted = |mut layers: Vec<_>| {
            layers.sort();
            layers
        };
        let name = folder.display();
        assert_eq!(sorted(planned), sorted(loaded), "{name}");
        assert_eq!(shape.parameters(), base.parameter_count(), "{name}");
        assert_eq!(shape.hidden as i64, base.config().hidden_size(), "{name}");
    }
}

#[test]
fn weights_take_the_planned_bytes_in_every_code_and_type() {
    type Write<'a> = &'a dyn Fn(&Path) -> std::io::Result<()>;
    let write: [Write<'_>; 2] = [&|at| LlamaShape::default().write(at, 1), &|at| T5Shape::default().write(at, 1)];
    for write in write {
        let folder = TempDir::new();
        let source = folder.join("source");
        std::fs::create_dir(&source).expect("a folder");
        write(&source).expect("written");
        for code in [QuantCode::Nf4, QuantCode::Nf4Single, QuantCode::Uniform4, QuantCode::None] {
            let target = folder.join(code.as_str());
            quantize_folder(&source, &target, &QuantOptions { code, ..QuantOptions::default() }, &mut |_| {})
                .expect("quantises");
            for (compute, element) in [(Compute::F32, 4), (Compute::Bf16, 2)] {
                let options = LoadOptions { compute, ..LoadOptions::default() };
                let (shape, base) = (shape(&target), Base::load(&target, &options).expect("loads"));
                let planned = shape.weight_bytes(code, element) + shape.embedding_bytes(element);
                // A code book's few bytes may be counted by one side alone.
                let slack = 128 * shape.linears.len() as u64;
                let loaded = base.resident_bytes() as u64;
                assert!(planned.abs_diff(loaded) <= slack, "{code:?} {compute:?}: {planned} planned, {loaded} loaded");
            }
        }
    }
}

#[test]
fn an_adapter_has_the_planned_number_of_values() {
    let tiny = TinyBase::quantized(|at| LlamaShape::default().write(at, 1).expect("written"));
    let config = r#"{"model_type":"llama","hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":96}"#;
    let shape = Shape::parse(config.as_bytes()).expect("a known family");
    let row = Example::Decoder { ids: vec![2, 3, 4, 5], in_loss: vec![true; 4] };
    for lora in [
        r#"{"rank": 3}"#,
        r#"{"rank": 4, "dora": true}"#,
        r#"{"rank": 4, "bias": true, "layers": [1]}"#,
        r#"{"rank": 4, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 2}}"#,
        r#"{"rank": 4, "exclude_modules": ["up_proj"]}"#,
        r#"{"rank": 2, "target_regex": ".*\\.0\\.mlp.*"}"#,
        r#"{"rank": 2, "target_modules": ["lm_head", "v_proj"]}"#,
    ] {
        let text = format!(r#"{{"lora": {lora}, "train": {{"max_steps": 1}}, "evaluate": {{"tuning_fraction": 0}}}}"#);
        let recipe: Recipe = serde_json::from_str(&text).expect("a recipe");
        let trained = train(&tiny.base, &recipe, std::slice::from_ref(&row), "tiny", &mut ()).expect("trains");
        let planned = Adapter::of(&shape, &recipe).expect("planned");
        assert_eq!(planned.values() * 4, trained.adapter.size_bytes(), "{lora}");
    }
}

/// Rows that end early are copied together, and no buffer grows beyond what was planned at the beginning.
#[test]
fn the_cache_of_answers_takes_no_more_than_planned() {
    for tiny in TinyBase::all() {
        let shape = Shape::parse(tiny.base.config_text()).expect("a known family");
        let prompts: Vec<Vec<u32>> = (0..6).map(|row| vec![10 + row; 9 + row as usize]).collect();
        let (longest, new) = (14, 40);
        let planned = shape.answer_bytes(longest, new, 4) * prompts.len() as u64;
        // What a first step says ends that row.
        let first = Greedy { max_new: 1, eos: Vec::new() };
        let answers = tiny.base.generate_greedy(&prompts, &first, None).expect("answers");
        let greedy = Greedy { max_new: new as usize, eos: vec![answers[5][0]] };
        let mut answering = tiny.base.begin_greedy(&prompts, &greedy, None).expect("begins");
        let mut most = 0;
        loop {
            most = most.max(answering.bytes() as u64);
            if answering.step(&tiny.base, None).expect("a step") {
                break;
            }
        }
        assert!(most > 0 && most <= planned, "{most} of {planned}");
        let whole = tiny.base.generate_greedy(&prompts, &greedy, None).expect("answers");
        assert_eq!(answering.into_answers(), whole);
    }
}
