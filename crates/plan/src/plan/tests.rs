use std::collections::BTreeMap;

use tailor_domain::LoraSpec;

use super::*;
use crate::work::Rates;

const GB: u64 = 1_000_000_000;

fn shape(config: &str) -> Shape {
    Shape::parse(config.as_bytes()).expect("a known family")
}

fn llama(hidden: u64, inner: u64, layers: u64, heads: u64, kv: u64, vocab: u64) -> Shape {
    shape(&format!(
        r#"{{"model_type":"llama","hidden_size":{hidden},"intermediate_size":{inner},"num_hidden_layers":{layers},
            "num_attention_heads":{heads},"num_key_value_heads":{kv},"vocab_size":{vocab}}}"#
    ))
}

fn llama_2_70b() -> Shape {
    llama(8192, 28672, 80, 64, 8, 32000)
}

fn t5_xxl() -> Shape {
    shape(
        r#"{"model_type":"t5","d_model":4096,"d_kv":64,"d_ff":10240,"num_layers":24,"num_heads":64,"vocab_size":32128,
            "feed_forward_proj":"gated-gelu","tie_word_embeddings":false}"#,
    )
}

/// One row of this many tokens in a pass, layers run again.
fn recipe(tokens: u32, rows: u32) -> Recipe {
    let mut recipe = Recipe::default();
    recipe.train.max_tokens = tokens;
    recipe.train.micro_batch_rows = rows;
    recipe.train.checkpointing = Checkpointing::Layers;
    recipe
}

fn rows(tokens: u64) -> Rows {
    let target = tokens / 4;
    Rows {
        count: 1000,
        tokens: 1000 * tokens,
        longest: tokens,
        longest_input: tokens,
        longest_target: target,
        most_labels: tokens,
    }
}

fn ask(shape: &Shape, recipe: &Recipe, rows: Rows, trainers: &[Calibration]) -> Plan {
    let cards = Device::cards();
    let question = Question {
        shape,
        recipe,
        code: QuantCode::Nf4,
        dtype: "bf16",
        rows,
        trainers,
        cards: &cards,
        price_per_hour: 2.0,
    };
    plan(&question).expect("a plan")
}

fn fits(plan: &Plan, gigabytes: u64) -> bool {
    plan.fits.iter().find(|fit| fit.device.memory_bytes == gigabytes * GB).expect("in the table").fits
}

fn trainer(memory_bytes: u64) -> Calibration {
    let rates = Rates { flop: 1e11, dequantised: 1e9, moved: 1e9 };
    Calibration {
        device: Device::cpu("a host", memory_bytes, true),
        threads: 2,
        rates: BTreeMap::from([("bf16".to_owned(), rates)]),
        measured_at_ms: 0,
    }
}

#[test]
fn a_70b_model_trains_on_one_80_gb_card_and_in_16_bits_on_none() {
    let shape = llama_2_70b();
    let plan = ask(&shape, &recipe(2048, 1), rows(2048), &[]);
    assert!(fits(&plan, 80) && !fits(&plan, 40), "{:?}", plan.fits);
    let total = plan.fits.last().expect("cards").memory.total();
    assert!((38 * GB..48 * GB).contains(&total), "{total}");
    let [ours, dense, full] = plan.ways.as_slice() else { panic!("three ways") };
    assert!(dense.bytes > 138 * GB, "two bytes a parameter");
    assert!(full.bytes > 1100 * GB && full.smallest.is_none(), "sixteen bytes a parameter");
    assert!(ours.bytes * 3 < dense.bytes);
}

#[test]
fn smaller_models_fit_smaller_cards() {
    let llama_2_7b = llama(4096, 11008, 32, 32, 32, 32000);
    let llama_3_8b = llama(4096, 14336, 32, 32, 8, 128_256);
    let plan = ask(&llama_2_7b, &recipe(2048, 1), rows(2048), &[]);
    assert!(fits(&plan, 24), "{:?}", plan.fits[0].memory);
    let plan = ask(&llama_3_8b, &recipe(2048, 2), rows(2048), &[]);
    assert!(fits(&plan, 24), "{:?}", plan.fits[0].memory);
    let plan = ask(&t5_xxl(), &recipe(512, 4), rows(512), &[]);
    // `wo` keeps its 16 bits.
    assert!(fits(&plan, 24) && plan.fits[0].memory.weights > 8 * GB, "{:?}", plan.fits[0].memory);
}

#[test]
fn parts_add_up_and_each_saving_saves_its_own_part() {
    let shape = llama(1024, 2816, 12, 16, 16, 32000);
    let memory = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = recipe(512, 4);
        recipe.train.checkpointing = Checkpointing::None;
        change(&mut recipe);
        ask(&shape, &recipe, rows(512), &[]).fits[0].memory
    };
    let plain = memory(&|_| {});
    assert_eq!(plain.total(), plain.parts().iter().map(|(_, bytes)| bytes).sum::<u64>());
    let again = memory(&|recipe| recipe.train.checkpointing = Checkpointing::Layers);
    assert!(again.activations * 4 < plain.activations && again.weights == plain.weights);
    let selective = memory(&|recipe| recipe.train.checkpointing = Checkpointing::Selective);
    assert!(selective.activations > 2 * again.activations && selective.activations * 4 < plain.activations * 3);
    assert!(again.total() < selective.total() && selective.total() < plain.total(), "{selective:?}");
    let narrow = memory(&|recipe| recipe.train.optimizer = Optimizer::AdamW8bit);
    assert!(plain.optimizer - narrow.optimizer > plain.adapter && narrow.activations == plain.activations);
    let two = memory(&|recipe| recipe.lora = LoraSpec { rank: 32, ..LoraSpec::default() });
    assert_eq!(two.adapter, 2 * plain.adapter);
    let upper = memory(&|recipe| recipe.lora.layers = vec![10, 11]);
    assert!(upper.activations * 4 < plain.activations, "below the first layer that learns nothing is kept");
    let prompt = memory(&|recipe| recipe.prompt_tuning.virtual_tokens = 20);
    assert_eq!(prompt.adapter, 20 * 1024 * 4);
    assert!(prompt.activations > plain.activations / 2, "the gradient goes down to the embeddings");
}

#[test]
fn what_does_not_fit_is_refused_with_settings_that_do() {
    let shape = llama(1024, 2816, 12, 16, 16, 32000);
    let mut wide = recipe(2048, 32);
    wide.train.checkpointing = Checkpointing::None;
    let plan = ask(&shape, &wide, rows(2048), &[trainer(4 * GB)]);
    assert_eq!(plan.fits_a_trainer, Some(false));
    let change = plan.nearest.first().expect("passes of fewer rows suffice");
    assert_eq!(change.settings[0].0, "train.micro_batch_rows");
    assert!(change.bytes <= 4 * GB);
    let refusal = plan.refusal().expect("refused");
    assert!(refusal.contains("activations") && refusal.contains("train.micro_batch_rows to"), "{refusal}");
    // The changed job is one that fits.
    wide.train.micro_batch_rows = change.settings[0].1.parse().expect("a number");
    assert_eq!(ask(&shape, &wide, rows(2048), &[trainer(4 * GB)]).fits_a_trainer, Some(true));
}

#[test]
fn several_changes_are_made_where_none_suffices_alone_and_none_is_invented() {
    let shape = llama(1024, 2816, 12, 16, 16, 32000);
    let mut recipe = recipe(4096, 8);
    recipe.train.checkpointing = Checkpointing::None;
    let small = trainer(800_000_000);
    let plan = ask(&shape, &recipe, rows(4096), std::slice::from_ref(&small));
    let change = plan.nearest.first().expect("together they suffice");
    assert!(change.settings.len() > 1 && change.bytes <= small.device.memory_bytes, "{change:?}");
    let plan = ask(&shape, &recipe, rows(4096), &[trainer(100_000_000)]);
    assert!(plan.nearest.is_empty());
    assert!(plan.refusal().expect("refused").contains("a smaller base or a larger machine"));
}

#[test]
fn layers_keep_their_products_where_that_suffices_and_their_inputs_where_it_does_not() {
    let shape = llama(1024, 2816, 12, 16, 16, 32000);
    let of = |policy, memory_bytes| {
        let mut recipe = recipe(2048, 1);
        recipe.train.checkpointing = policy;
        ask(&shape, &recipe, rows(2048), &[trainer(memory_bytes)])
    };
    let needed = |policy| of(policy, 0).fits[0].memory.total();
    let [plain, selective, layers] = [Checkpointing::None, Checkpointing::Selective, Checkpointing::Layers].map(needed);
    assert!(layers < selective && selective < plain, "{layers}, {selective}, {plain}");
    let offered = |policy, memory_bytes| {
        let nearest = of(policy, memory_bytes).nearest;
        let settings = nearest.into_iter().flat_map(|change| change.settings);
        settings.filter(|(field, _)| field == "train.checkpointing").map(|(_, value)| value).collect::<Vec<_>>()
    };
    assert_eq!(offered(Checkpointing::None, selective), ["selective"]);
    assert_eq!(offered(Checkpointing::None, layers), ["layers"]);
    assert_eq!(offered(Checkpointing::Selective, layers), ["layers"]);
    assert!(offered(Checkpointing::Layers, layers - 1).is_empty());
}

#[test]
fn a_card_that_is_too_small_is_offered_what_only_a_gpu_can_do() {
    let shape = llama(4096, 14336, 32, 32, 8, 128_256);
    let of = |change: &dyn Fn(&mut Recipe), memory_bytes| {
        let mut recipe = recipe(8192, 1);
        change(&mut recipe);
        let cards = [Device::gpu("a card", memory_bytes)];
        let question = Question {
            shape: &shape,
            recipe: &recipe,
            code: QuantCode::Nf4,
            dtype: "bf16",
            rows: rows(8192),
            trainers: &[],
            cards: &cards,
            price_per_hour: 0.0,
        };
        plan(&question).expect("a plan")
    };
    let offers = |plan: &Plan, field: &str, value: &str| {
        let wanted = (field.to_owned(), value.to_owned());
        plan.nearest.iter().any(|change| change.settings == [wanted.clone()])
    };
    let needed = of(&|_| (), 0).fits[0].memory.total();
    let aside = of(&|recipe| recipe.train.checkpointing = Checkpointing::LayersOnHost, 0).fits[0].memory.total();
    assert!(aside < needed);
    let tight = of(&|_| (), aside);
    assert!(offers(&tight, "train.checkpointing", "layers_on_host"), "{:?}", tight.nearest);

    let wide = |recipe: &mut Recipe| recipe.lora.rank = 512;
    let needed = of(&wide, 0).fits[0].memory;
    let paged = of(&wide, needed.total() - needed.optimizer / 2);
    assert!(offers(&paged, "train.optimizer", "paged_adamw"), "{:?}", paged.nearest);
    assert!(!paged.nearest.iter().any(|change| change.words().contains("8bit")), "it would change the numbers");
}

#[test]
fn what_only_a_gpu_can_do_fits_no_cpu_and_says_what_serves_there() {
    let shape = llama(512, 1408, 8, 8, 8, 8000);
    let mut recipe = recipe(512, 4);
    let plain = ask(&shape, &recipe, rows(512), &[trainer(64 * GB)]);
    recipe.train.checkpointing = Checkpointing::LayersOnHost;
    recipe.train.optimizer = Optimizer::PagedAdamW8bit;
    let plan = ask(&shape, &recipe, rows(512), &[trainer(64 * GB)]);
    assert_eq!(plan.fits_a_trainer, Some(false));
    assert_eq!(plan.fits[0].memory.activations, plain.fits[0].memory.activations, "a CPU has no other host");
    let refusal = plan.refusal().expect("refused");
    assert!(refusal.contains("train.checkpointing") && refusal.contains("take layers"), "{refusal}");
    assert_eq!(plan.nearest[0].words(), "train.checkpointing to layers and train.optimizer to adamw8bit");
    // A GPU beside it decides, however small.
    let gpu = Calibration { device: Device::gpu("a card", 24 * GB), ..trainer(0) };
    let plan = ask(&shape, &recipe, rows(512), &[trainer(64 * GB), gpu]);
    assert_eq!((plan.fits_a_trainer, plan.refusal()), (Some(true), None));
}

#[test]
fn settings_that_no_machine_could_hold_are_too_much_and_wrap_to_nothing_small() {
    let gemma_2 = shape(
        r#"{"model_type":"gemma2","hidden_size":4608,"intermediate_size":36864,"num_hidden_layers":46,
            "num_attention_heads":32,"num_key_value_heads":16,"head_dim":128,"vocab_size":256000}"#,
    );
    let mut recipe = recipe(1 << 20, 65536);
    (recipe.train.batch_rows, recipe.train.checkpointing) = (65536, Checkpointing::None);
    let all = Rows { count: 1 << 20, tokens: 1 << 40, ..rows(1 << 20) };
    let plan = ask(&gemma_2, &recipe, all, &[trainer(64 * GB)]);
    assert_eq!(plan.fits_a_trainer, Some(false));
    assert!(plan.fits.iter().all(|fit| !fit.fits && fit.memory.total() == u64::MAX), "{:?}", plan.fits[0]);
}

#[test]
fn the_way_in_16_bits_is_in_16_bits_whatever_the_job_computes_in() {
    let shape = llama(1024, 2816, 12, 16, 16, 32000);
    let mut recipe = recipe(512, 4);
    let [_, dense, full] = ask(&shape, &recipe, rows(512), &[]).ways.try_into().expect("three ways");
    recipe.train.precision = tailor_domain::spec::Precision::F32;
    let [ours, as_f32, full_f32] = ask(&shape, &recipe, rows(512), &[]).ways.try_into().expect("three ways");
    assert_eq!((as_f32.bytes, full_f32.bytes), (dense.bytes, full.bytes));
    assert!(as_f32.bytes < ours.bytes + 2 * shape.parameters());
}

#[test]
fn the_update_and_the_moments_are_those_of_the_device_and_the_settings() {
    let shape = llama(1024, 2816, 2, 16, 16, 32000);
    let of = |device: &Device, change: &dyn Fn(&mut Recipe)| {
        let mut recipe = recipe(16, 1);
        (recipe.lora.rank, recipe.evaluate.tuning_fraction) = (512, 0.02);
        change(&mut recipe);
        let rows = rows(16);
        let question = Question {
            shape: &shape,
            recipe: &recipe,
            code: QuantCode::Nf4,
            dtype: "bf16",
            rows,
            trainers: &[],
            cards: &[],
            price_per_hour: 0.0,
        };
        memory_on(&question, device).expect("a plan")
    };
    let (cpu, gpu) = (Device::cpu("a host", 64 * GB, true), Device::gpu("a card", 24 * GB));
    let plain = |_: &mut Recipe| ();
    let n = of(&cpu, &plain).gradients / 4;
    let (on_cpu, on_gpu) = (of(&cpu, &plain), of(&gpu, &plain));
    assert_eq!((on_cpu.optimizer, on_gpu.optimizer), (12 * n, 8 * n), "a GPU's best state is on the host");
    // Six temporaries of each value, which one launch has in registers.
    assert_eq!(on_cpu.working_set - on_gpu.working_set, 24 * n);
    let paged = |recipe: &mut Recipe| recipe.train.optimizer = Optimizer::PagedAdamW;
    assert_eq!(of(&gpu, &paged).optimizer, 0);
    for device in [&cpu, &gpu] {
        let own = of(device, &|recipe| recipe.lora.plus_ratio = 16.0);
        let without = of(device, &plain);
        assert_eq!(own.optimizer - without.optimizer, 4 * n);
        assert_eq!(own.working_set - without.working_set, 12 * n);
        let taken = of(device, &|recipe| recipe.lora.init = tailor_domain::spec::LoraInit::Pissa);
        assert_eq!(taken.adapter, 2 * without.adapter);
    }
}

/// The answers come when gradients, moments and activations are gone.
#[test]
fn an_answer_that_takes_more_than_a_step_is_in_the_plan() {
    let shape = llama_2_70b();
    let of = |max_new_tokens| {
        let mut recipe = recipe(512, 1);
        (recipe.lora.rank, recipe.evaluate.max_new_tokens) = (1, max_new_tokens);
        ask(&shape, &recipe, rows(512), &[]).fits[0].memory
    };
    let (short, long) = (of(64), of(8192));
    // Keys and values of 80 layers with 8 heads of 128 in bf16.
    let cache = (512 + 8192) * 80 * 2 * 8 * 128 * 2;
    assert!(long.total() > short.total() && long.for_answers() >= cache, "{long:?}");
    assert!(long.for_answers() < cache + cache / 10);
    assert!(short.for_answers() >= shape.answer_bytes(512, 64, 2));
}

#[test]
fn passes_shrink_by_themselves_where_the_settings_leave_it_open() {
    let shape = llama(1024, 2816, 12, 16, 16, 32000);
    let plan = ask(&shape, &recipe(2048, 0), rows(2048), &[trainer(2 * GB)]);
    let fit = &plan.fits[0];
    assert!(fit.fits && fit.micro_batch < 32, "{fit:?}");
    assert!(plan.refusal().is_none());
}

#[test]
fn time_and_money_come_from_the_trainers_rates_and_are_not_guessed_without() {
    let shape = llama(512, 1408, 8, 8, 8, 8000);
    let mut recipe = recipe(512, 32);
    recipe.train.epochs = 2.0;
    let of = |plan: &Plan| (plan.steps, plan.fits[0].seconds, plan.fits[0].cost);
    let (steps, seconds, cost) = of(&ask(&shape, &recipe, rows(512), &[trainer(64 * GB)]));
    assert_eq!(steps, 62, "980 rows in batches of 32, twice");
    let seconds = seconds.expect("measured");
    assert!((cost.expect("a price") - seconds / 1800.0).abs() < 1e-9);
    recipe.train.epochs = 4.0;
    let twice = of(&ask(&shape, &recipe, rows(512), &[trainer(64 * GB)])).1.expect("measured");
    assert!((twice / seconds - 2.0).abs() < 0.05);
    let unknown = ask(&shape, &recipe, rows(512), &[]);
    assert!(unknown.fits.iter().all(|fit| fit.seconds.is_none() && fit.cost.is_none()));
    assert_eq!(unknown.fits_a_trainer, None);
}

#[test]
fn layers_that_keep_their_products_take_little_more_time_than_those_that_keep_all() {
    let shape = llama(1024, 2816, 12, 16, 16, 32000);
    let seconds = |policy| {
        let mut recipe = recipe(512, 4);
        recipe.train.checkpointing = policy;
        let rates = Rates { flop: 1e12, dequantised: 1e9, moved: 1e10 };
        let trainer = Calibration { rates: BTreeMap::from([("bf16".to_owned(), rates)]), ..trainer(64 * GB) };
        ask(&shape, &recipe, rows(512), &[trainer]).fits[0].seconds.expect("measured")
    };
    let [plain, selective, layers] =
        [Checkpointing::None, Checkpointing::Selective, Checkpointing::Layers].map(seconds);
    assert!(plain < selective && selective < 1.1 * plain, "{plain}, {selective}");
    assert!(layers > 1.2 * plain, "{plain}, {layers}");
}

#[test]
fn ranks_share_the_rows_of_a_batch_take_less_time_and_cost_what_they_all_cost() {
    let shape = llama(512, 1408, 8, 8, 8, 8000);
    let mut recipe = recipe(512, 0);
    recipe.train.checkpointing = Checkpointing::None;
    let of = |recipe: &Recipe| ask(&shape, recipe, rows(512), &[trainer(64 * GB)]).fits[0].clone();
    let alone = of(&recipe);
    recipe.train.ranks = 4;
    let together = of(&recipe);
    assert_eq!((alone.micro_batch, together.micro_batch), (32, 8), "each passes over its share");
    assert!(
        together.memory.activations * 2 < alone.memory.activations && together.memory.weights == alone.memory.weights
    );
    let (one, four) = (alone.seconds.expect("measured"), together.seconds.expect("measured"));
    assert!(four < 0.5 * one && four > 0.24 * one, "{one} and {four} seconds");
    assert!((together.cost.expect("a price") - 4.0 * four / 1800.0).abs() < 1e-9, "four machines for that time");
}

/// Peaks of tensors that one H200 measured at commit d9994a4 (docs/benchmarks.md), without what its context takes.
#[test]
fn peaks_that_a_gpu_has_measured_are_foretold_within_a_tenth() {
    use tailor_domain::spec::{Grouping, Optimizer};

    let case = |tokens, rows, checkpointing, optimizer, grouping| {
        let mut recipe = recipe(tokens, rows);
        (recipe.train.checkpointing, recipe.train.optimizer) = (checkpointing, optimizer);
        recipe.train.grouping = grouping;
        recipe.evaluate.tuning_fraction = 0.0;
        recipe.lora.rank = 16;
        recipe
    };
    let llama_3_8b = llama(4096, 14336, 32, 32, 8, 128_256);
    let plain = case(4096, 1, Checkpointing::None, Optimizer::AdamW, Grouping::Packed);
    let again = case(2048, 2, Checkpointing::Layers, Optimizer::AdamW8bit, Grouping::Length);
    let aside = case(2048, 1, Checkpointing::LayersOnHost, Optimizer::PagedAdamW8bit, Grouping::Length);
    for (name, shape, recipe, measured) in [
        ("8B, all kept", &llama_3_8b, plain, 25.074e9),
        ("8B, layers run again", &llama_3_8b, again, 8.105e9),
        ("70B, inputs on the host", &llama_2_70b(), aside, 39.646e9),
    ] {
        let question = Question {
            shape,
            recipe: &recipe,
            code: QuantCode::Nf4,
            dtype: "bf16",
            rows: rows(u64::from(recipe.train.max_tokens)),
            trainers: &[],
            cards: &[],
            price_per_hour: 2.0,
        };
        let card = Device::gpu("H200", 141 * GB);
        let memory = memory_on(&question, &card).expect("a plan");
        let foretold = (memory.total() - memory.runtime) as f64;
        println!("{name}: {:.3} GB for {:.3}: {memory:?}", foretold / 1e9, measured / 1e9);
        assert!((foretold / measured - 1.0).abs() < 0.1, "{name}: {foretold:.3e} for {measured:.3e}");
    }
}
