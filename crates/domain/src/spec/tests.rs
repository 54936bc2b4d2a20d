use super::*;

#[test]
fn defaults_are_valid() {
    assert_eq!(Recipe::default().validate(), Ok(()));
}

#[test]
fn a_bad_value_is_refused_by_field_value_and_limit() {
    let error = LoraSpec { rank: 0, ..Default::default() }.validate().expect_err("rank 0");
    assert_eq!(error.to_string(), "lora.rank: 0 is outside 1 to 1024");
    let nan = TrainSpec { learning_rate: f64::NAN, ..Default::default() };
    assert!(nan.validate().is_err(), "NaN passes no limit");
    let micro = TrainSpec { batch_rows: 8, micro_batch_rows: 9, ..Default::default() };
    assert!(micro.validate().is_err(), "a micro-batch is part of a batch");
    let ranks = TrainSpec { batch_rows: 2, ranks: 3, ..Default::default() };
    let error = ranks.validate().expect_err("a rank without a row").to_string();
    assert_eq!(error, "train.ranks: 3 share a batch of 2 rows; raise train.batch_rows");
    assert!(TrainSpec { ranks: 0, ..Default::default() }.validate().is_err());
}

#[test]
fn an_unknown_key_is_refused_by_name_in_every_section() {
    for (section, key) in [
        ("lora", "rnak"),
        ("train", "learning_rat"),
        ("evaluate", "patience"),
        ("stop", "target"),
        ("preference", "betta"),
        ("prompt_tuning", "tokens"),
    ] {
        let text = format!(r#"{{"{section}": {{"{key}": 8}}}}"#);
        let error = serde_json::from_str::<Recipe>(&text).expect_err("unknown key");
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn what_excludes_each_other_is_refused_with_both_names() {
    let recipe = |text: &str| serde_json::from_str::<Recipe>(text).expect("reads").validate();
    for (text, wanted) in [
        (r#"{"lora": {"target_modules": ["q"], "target_regex": ".*q"}}"#, "lora.target_regex: stands in the place of"),
        (r#"{"lora": {"target_modules": ["q", "all-linear"]}}"#, "all-linear stands alone"),
        (r#"{"prompt_tuning": {"virtual_tokens": 8}, "lora": {"rank": 4}}"#, "does not go with settings of lora"),
        (r#"{"prompt_tuning": {"virtual_tokens": 8}, "train": {"grouping": "packed"}}"#, "use length"),
        (
            r#"{"prompt_tuning": {"virtual_tokens": 8}, "train": {"unfreeze": [{"from": 0.5, "layers": [1]}]}}"#,
            "does not go with train.unfreeze",
        ),
        (r#"{"prompt_tuning": {"virtual_tokens": 5000}}"#, "5000 is outside 0 to 4096"),
        (r#"{"prompt_tuning": {"init": "uniform"}}"#, "set prompt_tuning.virtual_tokens"),
        (r#"{"lora": {"dora": true, "dropout": 0.5}}"#, "lora.dora: does not go with lora.dropout 0.5"),
        (r#"{"lora": {"dora": true, "bias": true}}"#, "lora.dora: does not go with lora.bias"),
        (r#"{"lora": {"init": "pissa", "bias": true}}"#, "lora.init: pissa does not go with lora.bias"),
        (r#"{"lora": {"rank_pattern": {"q_proj": 0}}}"#, "lora.rank_pattern[q_proj]: 0 is outside"),
        (r#"{"train": {"objective": "dpo", "grouping": "packed"}}"#, "train.grouping: packed holds single rows"),
        (r#"{"stop": {"max_cost": 3}}"#, "stop.max_cost: needs stop.price_per_hour"),
        (r#"{"stop": {"patience": 3}, "evaluate": {"tuning_fraction": 0}}"#, "stop.patience: needs rows"),
        (r#"{"stop": {"spike_factor": 1.0}}"#, "stop.spike_factor: 1 is outside 1.5"),
        (r#"{"train": {"unfreeze": [{"from": 0.5, "layers": []}]}}"#, "train.unfreeze[0].layers: empty"),
        (
            r#"{"train": {"unfreeze": [{"from": 0, "layers": [1]}, {"from": 0.5, "layers": [1]}]}}"#,
            "train.unfreeze[1].layers: layer 1 stands in an earlier stage",
        ),
    ] {
        let error = recipe(text).expect_err(text).to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
}

#[test]
fn the_shorter_of_time_and_money_bounds_a_run() {
    let stop = StopSpec { max_seconds: 7200.0, max_cost: 3.0, price_per_hour: 3.0, ..Default::default() };
    assert_eq!(stop.seconds(1), Some(3600.0));
    assert_eq!(stop.seconds(2), Some(1800.0), "two machines cost twice as much an hour");
    assert_eq!(StopSpec { max_cost: 0.0, ..stop }.seconds(1), Some(7200.0));
    assert_eq!(StopSpec::default().seconds(1), None);
}

#[test]
fn names_are_read_as_they_are_written() {
    for name in LossOn::NAMES {
        let read: LossOn = name.parse().expect("a name");
        assert_eq!(&read.as_str(), name);
        assert_eq!(serde_json::to_string(&read).expect("json"), format!("{name:?}"), "the job file says the same");
    }
    let optimizer: Optimizer = "adamw8bit".parse().expect("a name");
    assert_eq!(serde_json::to_string(&optimizer).expect("json"), "\"adamw8bit\"");
    let error = "sgd".parse::<Optimizer>().expect_err("not ours").to_string();
    assert_eq!(error, "train.optimizer: \"sgd\" is none of adamw, adamw8bit, paged_adamw, paged_adamw8bit");
}

#[test]
fn a_spec_comes_back_as_it_went() {
    let spec = JobSpec {
        base: "b".parse().expect("name"),
        dataset: "d".parse().expect("name"),
        dataset_version: Version(2),
        adapter: "a".parse().expect("name"),
        recipe: Recipe { lora: LoraSpec { rank: 3, ..Default::default() }, ..Default::default() },
        traceparent: None,
        created_at_ms: 5,
    };
    let text = serde_json::to_string(&spec).expect("json");
    assert_eq!(serde_json::from_str::<JobSpec>(&text).expect("reads"), spec);
}
