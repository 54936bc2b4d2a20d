//! Whole runs with the kernels that a GPU runs, on the host or on the GPU that `TAILOR_TEST_DEVICE` names: they go where
//! the CPU's own operators go.

use tailor_domain::spec::{Checkpointing, Grouping, Optimizer};
use tailor_domain::{ErrorCode, LoraSpec, TrainSpec};
use tailor_models::{Base, LoadOptions};
use tailor_testkit::skipped_without_gpu;
use tailor_torch::kernels::test_device;
use tailor_train::train;
use tch::Device;

use super::{Steps, TinyBase, lora, recipe, spec};

/// Where kernels are tried.
fn device() -> Device {
    test_device().expect("a C++ compiler, or the GPU that TAILOR_TEST_DEVICE names")
}

impl TinyBase {
    /// The same base, its weights as a GPU has them.
    fn with_kernels(self) -> Self {
        let load = LoadOptions { device: device(), ..LoadOptions::default() };
        let base = Base::load(&self._folder.join("nf4"), &load).expect("loads");
        assert_eq!(base.linears(), self.base.linears());
        Self { base, ..self }
    }
}

/// Loss and gradient norm of each step, and the adapter's values.
type Outcome = (Vec<(f64, f64)>, Vec<f32>);

fn run(tiny: &TinyBase, lora: &LoraSpec, spec: &TrainSpec) -> Outcome {
    let (trained, steps) = tiny.train(lora, spec, &tiny.random_rows(8, 3));
    let values = trained.adapter.pairs().values().flat_map(|pair| pair.a.iter().chain(&pair.b).copied()).collect();
    (steps.iter().map(|step| (step.loss, step.grad_norm)).collect(), values)
}

/// Sums in another order: f32 differs in its last digits, and Adam divides by what may be nearly nothing.
fn same(what: &str, kernels: &Outcome, plain: &Outcome) {
    for ((loss, norm), (expected_loss, expected_norm)) in kernels.0.iter().zip(&plain.0) {
        assert!((loss - expected_loss).abs() < 1e-4 * expected_loss, "{what}: loss {loss} for {expected_loss}");
        assert!((norm - expected_norm).abs() < 2e-3 * expected_norm, "{what}: norm {norm} for {expected_norm}");
    }
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let off = squares(&mut kernels.1.iter().zip(&plain.1).map(|(a, b)| f64::from(a - b)));
    let size = squares(&mut plain.1.iter().map(|value| f64::from(*value)));
    assert!(off < 2e-2 * size, "{what}: values off by {off} of {size}");
}

#[test]
fn a_decoder_trains_with_kernels_as_without() {
    let cases = [
        ("lengths, all kept", Grouping::Length, Checkpointing::None, Optimizer::AdamW),
        ("packed, run again, 8 bits", Grouping::Packed, Checkpointing::Layers, Optimizer::AdamW8bit),
        ("packed, all kept", Grouping::Packed, Checkpointing::None, Optimizer::AdamW),
        ("packed, products kept", Grouping::Packed, Checkpointing::Selective, Optimizer::AdamW),
        ("lengths, products kept", Grouping::Length, Checkpointing::Selective, Optimizer::AdamW),
    ];
    let specs = cases.map(|(what, grouping, checkpointing, optimizer)| {
        (what, TrainSpec { grouping, checkpointing, optimizer, max_tokens: 64, ..spec() })
    });
    let tiny = TinyBase::random_llama(2);
    let plain: Vec<Outcome> = specs.iter().map(|(_, spec)| run(&tiny, &lora(), spec)).collect();
    let tiny = tiny.with_kernels();
    for ((what, spec), plain) in specs.iter().zip(&plain) {
        same(what, &run(&tiny, &lora(), spec), plain);
    }
}

#[test]
fn an_encoder_decoder_trains_with_kernels_as_without() {
    let specs = [Checkpointing::Layers, Checkpointing::Selective];
    let specs = specs.map(|checkpointing| TrainSpec { checkpointing, ..spec() });
    let tiny = TinyBase::t5();
    let plain = specs.each_ref().map(|spec| run(&tiny, &lora(), spec));
    let tiny = tiny.with_kernels();
    for (spec, plain) in specs.iter().zip(&plain) {
        same(spec.checkpointing.as_str(), &run(&tiny, &lora(), spec), plain);
    }
}

#[test]
fn variants_of_an_adapter_train_with_kernels_as_without() {
    let variants =
        [("DoRA", LoraSpec { dora: true, ..lora() }), ("rates of their own", LoraSpec { plus_ratio: 4.0, ..lora() })];
    let tiny = TinyBase::llama();
    let plain: Vec<Outcome> = variants.iter().map(|(_, lora)| run(&tiny, lora, &spec())).collect();
    let tiny = tiny.with_kernels();
    for ((what, lora), plain) in variants.iter().zip(&plain) {
        same(what, &run(&tiny, lora, &spec()), plain);
    }
}

/// Dropout is drawn where the tensors are, so that a run is compared with one on the same device.
#[test]
fn layers_that_keep_their_products_learn_the_same_with_kernels_whatever_the_variant() {
    let tiny = TinyBase::random_llama(2).with_kernels();
    for lora in [
        LoraSpec { dropout: 0.3, ..lora() },
        LoraSpec { dropout: 0.3, bias: true, ..lora() },
        LoraSpec { dora: true, ..lora() },
    ] {
        let of = |checkpointing| run(&tiny, &lora, &TrainSpec { checkpointing, ..spec() });
        same("products kept", &of(Checkpointing::Selective), &of(Checkpointing::None));
    }
}

/// Where there is no GPU it shows nothing, and says so.
#[test]
fn what_only_a_gpu_can_do_changes_no_result() {
    if !device().is_cuda() {
        return skipped_without_gpu();
    }
    let tiny = TinyBase::random_llama(2).with_kernels();
    let spec = TrainSpec { optimizer: Optimizer::AdamW8bit, checkpointing: Checkpointing::Layers, ..spec() };
    let plain = run(&tiny, &lora(), &spec);
    let aside = TrainSpec { checkpointing: Checkpointing::LayersOnHost, ..spec.clone() };
    assert_eq!(run(&tiny, &lora(), &aside), plain, "layers' inputs on the host");
    let paged = TrainSpec { optimizer: Optimizer::PagedAdamW8bit, ..spec.clone() };
    assert_eq!(run(&tiny, &lora(), &paged), plain, "paged moments in 8 bits");
    let wide = run(&tiny, &lora(), &TrainSpec { optimizer: Optimizer::AdamW, ..spec.clone() });
    let paged = TrainSpec { optimizer: Optimizer::PagedAdamW, ..spec };
    assert_eq!(run(&tiny, &lora(), &paged), wide, "paged moments in 32 bits");
}

#[test]
fn what_only_a_gpu_can_do_is_refused_on_a_cpu_with_what_serves_there() {
    let tiny = TinyBase::llama();
    let refused = |spec: TrainSpec| {
        let rows = tiny.rows(4);
        let error =
            train(&tiny.base, &recipe(&lora(), &spec), &rows, "tiny", &mut Steps::default()).expect_err("refused");
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        error.to_string()
    };
    let error = refused(TrainSpec { checkpointing: Checkpointing::LayersOnHost, ..spec() });
    assert!(error.contains("train.checkpointing") && error.contains("take layers"), "{error}");
    let error = refused(TrainSpec { optimizer: Optimizer::PagedAdamW8bit, ..spec() });
    assert!(error.contains("train.optimizer") && error.contains("take adamw8bit"), "{error}");
}
