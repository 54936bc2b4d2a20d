//! Each way to adapt: it learns, and what is published is what was trained.

use std::collections::BTreeMap;

use tailor_domain::spec::{LoraInit, Schedule};
use tailor_domain::{LoraSpec, TrainSpec};
use tailor_peft::{Adapter, Limits};

use crate::{TinyBase, lora, recipe, spec};

/// A full batch each step at one learning rate, so that the loss of step N + 1 is that of the state after N steps.
fn steady(steps: u64) -> TrainSpec {
    TrainSpec {
        batch_rows: 12,
        micro_batch_rows: 12,
        max_steps: steps,
        epochs: 1000.0,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        ..spec()
    }
}

/// Trains, and compares the loss of the adapter that comes out, written and read again, with the trainer's own.
fn check(tiny: &TinyBase, name: &str, lora: &LoraSpec) -> Adapter {
    let rows = tiny.random_rows(12, 3);
    const STEPS: u64 = 12;
    let (trained, _) = tiny.train(lora, &steady(STEPS), &rows);
    let (_, longer) = tiny.train(lora, &steady(STEPS + 1), &rows);
    let bytes = trained.adapter.weights_to_bytes().expect("written");
    let read = Adapter::from_bytes(&trained.adapter.config_to_bytes(), &bytes, &Limits::default()).expect("read");
    let (published, own) = (tiny.loss(&read, &rows), longer[STEPS as usize].loss);
    let first = longer[0].loss;
    println!("{name}: loss {first:.4} to {own:.4}, published {published:.4}, rank {}", read.max_rank());
    assert!((published - own).abs() < 2e-4 * own, "{name}: published {published}, trained {own}");
    assert!(own < 0.97 * first, "{name}: {first} to {own} is no learning");
    read
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_is_published_is_what_was_trained_whatever_the_variant() {
    for tiny in TinyBase::all() {
        let (q, o) = if tiny.is_decoder() { ("q_proj", "o_proj") } else { ("q", "o") };
        let pattern = |value: u32| BTreeMap::from([(q.to_owned(), value)]);
        for (name, lora) in [
            ("plain", lora()),
            ("rank-stabilised", LoraSpec { rslora: true, ..lora() }),
            ("DoRA", LoraSpec { dora: true, ..lora() }),
            ("with a bias", LoraSpec { bias: true, ..lora() }),
            ("rank-stabilised DoRA", LoraSpec { dora: true, rslora: true, ..lora() }),
            ("LoRA+", LoraSpec { plus_ratio: 8.0, ..lora() }),
            ("PiSSA", LoraSpec { init: LoraInit::Pissa, ..lora() }),
            ("rank-stabilised PiSSA", LoraSpec { init: LoraInit::Pissa, rslora: true, ..lora() }),
            (
                "a rank and an alpha of its own",
                LoraSpec {
                    rank_pattern: pattern(7),
                    alpha_pattern: pattern(3).into_iter().map(|(key, value)| (key, value as f32)).collect(),
                    ..lora()
                },
            ),
            ("PiSSA with a rank of its own", LoraSpec { init: LoraInit::Pissa, rank_pattern: pattern(7), ..lora() }),
            ("a regular expression", LoraSpec { target_regex: format!(r".*\.({q}|{o})"), ..lora() }),
            ("one layer", LoraSpec { layers: vec![1], ..lora() }),
            ("all but two", LoraSpec { exclude_modules: names(&[q, o]), ..lora() }),
        ] {
            let adapter = check(&tiny, name, &lora);
            let paths: Vec<&String> = adapter.pairs().keys().collect();
            match name {
                "one layer" => assert!(paths.iter().all(|path| path.contains(".1.")), "{paths:?}"),
                "all but two" => assert!(!paths.iter().any(|path| path.ends_with(&format!(".{q}"))), "{paths:?}"),
                "a regular expression" => assert!(paths.iter().all(|path| path.ends_with(q) || path.ends_with(o))),
                "a rank and an alpha of its own" => assert_eq!(adapter.max_rank(), 7),
                "PiSSA" => assert_eq!((adapter.max_rank(), adapter.config().r), (8, 8), "twice the rank, and plain"),
                _ => {}
            }
        }
    }
}

#[test]
fn lora_on_the_head_trains_tied_or_not() {
    for seed in [2, 3] {
        let tiny = TinyBase::random_llama(seed);
        let lora = LoraSpec { target_modules: names(&["lm_head", "q_proj"]), ..lora() };
        let adapter = check(&tiny, "the head", &lora);
        let head = &adapter.pairs()["lm_head"];
        assert!(head.b.iter().any(|value| *value != 0.0), "the head's own matrices moved");
    }
    let t5 = TinyBase::t5();
    check(&t5, "T5's head", &LoraSpec { target_modules: names(&["lm_head", "v"]), ..lora() });
}

#[test]
fn pissa_begins_at_the_base_and_in_its_principal_directions() {
    let tiny = TinyBase::llama();
    let rows = tiny.random_rows(12, 3);
    let first = |lora: &LoraSpec| tiny.train(lora, &steady(1), &rows).1[0].loss;
    let (plain, pissa) = (first(&lora()), first(&LoraSpec { init: LoraInit::Pissa, ..lora() }));
    assert!((plain - pissa).abs() < 1e-4 * plain, "nothing is changed before the first step: {plain} and {pissa}");
}

#[test]
fn frozen_layers_stay_as_they_are_until_their_stage_begins() {
    let tiny = TinyBase::llama();
    let rows = tiny.random_rows(12, 3);
    let unfreeze = |from: f64| vec![tailor_domain::spec::UnfreezeStage { from, layers: vec![0] }];
    let moved = |steps: u64, from: f64| {
        let spec = TrainSpec { unfreeze: unfreeze(from), ..steady(steps) };
        let (trained, steps) = tiny.train(&lora(), &spec, &rows);
        let of_layer = |layer: &str| {
            let pairs = trained.adapter.pairs().iter().filter(|(path, _)| path.contains(layer));
            pairs.flat_map(|(_, pair)| pair.b.iter()).any(|value| *value != 0.0)
        };
        (of_layer("layers.0."), of_layer("layers.1."), steps)
    };
    assert!(!moved(4, 1.0).0, "its stage never begins");
    let (lower, upper, half_way) = moved(4, 0.5);
    assert!(lower && upper);
    let (_, _, all) = moved(4, 0.0);
    let losses = |steps: &[tailor_domain::StepMetrics]| steps.iter().map(|step| step.loss).collect::<Vec<_>>();
    let (half_way, all) = (losses(&half_way), losses(&all));
    assert_eq!(half_way[0], all[0], "the first loss is the base's");
    assert_ne!(half_way[1], all[1], "then one layer stood still");
    let refused = tailor_train::train(
        &tiny.base,
        &recipe(
            &lora(),
            &TrainSpec {
                unfreeze: vec![tailor_domain::spec::UnfreezeStage { from: 0.5, layers: vec![0, 1] }],
                ..steady(4)
            },
        ),
        &rows,
        "tiny",
        &mut (),
    );
    assert!(refused.expect_err("nothing learns").to_string().contains("no layer learns from the beginning"));
}

#[test]
fn noise_and_8_bit_moments_learn_too() {
    for tiny in TinyBase::all() {
        let rows = tiny.random_rows(12, 3);
        for spec in [
            TrainSpec { neftune_alpha: 5.0, ..steady(12) },
            TrainSpec { optimizer: tailor_domain::spec::Optimizer::AdamW8bit, ..steady(12) },
        ] {
            let (trained, steps) = tiny.train(&lora(), &spec, &rows);
            let after = tiny.loss(&trained.adapter, &rows);
            assert!(after < 0.97 * steps[0].loss, "{after} from {}", steps[0].loss);
        }
    }
}

#[test]
fn what_chooses_nothing_is_refused_by_field() {
    let tiny = TinyBase::llama();
    let rows = tiny.random_rows(4, 3);
    for (lora, wanted) in [
        (LoraSpec { layers: vec![0, 9], ..lora() }, "lora.layers: 9 is no layer of the base; it has 0 to 1"),
        (LoraSpec { target_regex: "nothing".into(), ..lora() }, "lora: the settings choose no linear layer"),
        (LoraSpec { target_regex: "(".into(), ..lora() }, "lora: "),
        (
            LoraSpec { rank_pattern: BTreeMap::from([("query".to_owned(), 4)]), ..lora() },
            "lora.rank_pattern: \"query\" matches none of the chosen modules",
        ),
        (
            LoraSpec { exclude_modules: names(&["query"]), ..lora() },
            "lora.exclude_modules[0]: no linear layer of the base ends in \"query\"; it has down_proj",
        ),
    ] {
        let error = tailor_train::train(&tiny.base, &recipe(&lora, &spec()), &rows, "tiny", &mut ());
        let error = error.expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
