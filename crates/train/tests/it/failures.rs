//! What cannot be trained is an error that says why, and the process goes on.

use safetensors::{Dtype, SafeTensors};
use tailor_domain::{ErrorCode, LoraSpec, TrainSpec};
use tailor_testkit::LlamaShape;
use tailor_train::{Error, predict, train};

use crate::{TinyBase, lora, recipe, spec};

/// All weights stay finite, but what they make of `token` is not: only its embedding has anything in the channel that the
/// first norm multiplies with almost the largest number there is.
pub(crate) fn poison(folder: &std::path::Path, token: usize) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("reads");
    let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
    let start = |name: &str| {
        let tensor = metadata.info(name).expect("a tensor");
        assert_eq!(tensor.dtype, Dtype::F32);
        8 + header + tensor.data_offsets.0
    };
    let (embedding, norm) = (start("model.embed_tokens.weight"), start("model.layers.0.input_layernorm.weight"));
    let LlamaShape { hidden, vocab, .. } = LlamaShape::default();
    let mut put = |at: usize, value: f32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    for id in 0..vocab {
        put(embedding + id * hidden * 4, if id == token { 1.0 } else { 0.0 });
    }
    put(norm, 3e38);
    std::fs::write(&path, bytes).expect("writes");
}

#[test]
fn a_loss_that_is_no_number_names_the_step_and_the_rows() {
    let tiny = TinyBase::quantized(|folder| {
        LlamaShape::default().write(folder, 1).expect("writes");
        poison(folder, 77);
    });
    let rows = [tiny.row(&[10, 11], &[12]), tiny.row(&[77, 11], &[12])];
    let spec = TrainSpec { micro_batch_rows: 1, ..spec() };
    let error = train(&tiny.base, &recipe(&lora(), &spec), &rows, "tiny", &mut ()).expect_err("NaN");
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert!(error.to_string().starts_with("step 1: the loss is not finite (loss NaN"), "{error}");
    assert!(error.to_string().contains("over rows 1;"), "{error}");
    train(&tiny.base, &recipe(&lora(), &spec), &rows[..1], "tiny", &mut ()).expect("the other row trains");
}

#[test]
fn a_gradient_that_is_no_number_is_an_error_with_its_norm() {
    let tiny = TinyBase::llama();
    // The loss of a step still finite, its gradient overflows: α and so the scale are as large as f32 allows.
    let lora = LoraSpec { alpha: 65536.0, rank: 1, ..lora() };
    let spec = TrainSpec { learning_rate: 1.0, warmup_ratio: 0.0, max_steps: 200, ..spec() };
    match train(&tiny.base, &recipe(&lora, &spec), &tiny.rows(8), "tiny", &mut ()) {
        Err(error @ Error::NotFinite { .. }) => assert!(error.to_string().contains("gradient norm"), "{error}"),
        Err(other) => panic!("{other}"),
        Ok(trained) => assert!(trained.summary.final_loss.is_finite()),
    }
}

#[test]
fn a_module_the_base_lacks_is_refused_with_those_it_has() {
    let tiny = TinyBase::llama();
    let lora = LoraSpec { target_modules: vec!["q_proj".into(), "query".into()], ..lora() };
    let error = train(&tiny.base, &recipe(&lora, &spec()), &tiny.rows(2), "tiny", &mut ()).expect_err("no such module");
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
    let wanted = "lora.target_modules[1]: no linear layer of the base ends in \"query\"; it has down_proj, gate_proj, \
                  k_proj, lm_head, o_proj, q_proj, up_proj, v_proj";
    assert_eq!(error.to_string(), wanted);
}

#[test]
fn rows_of_another_family_and_settings_out_of_range_are_refused() {
    let [llama, t5] = TinyBase::all();
    let error =
        train(&llama.base, &recipe(&lora(), &spec()), &t5.rows(1), "tiny", &mut ()).expect_err("another family");
    assert!(matches!(error, Error::Row { row: 0, .. }), "{error}");
    let spec = TrainSpec { learning_rate: 0.0, ..spec() };
    let error =
        train(&llama.base, &recipe(&lora(), &spec), &llama.rows(1), "tiny", &mut ()).expect_err("no learning rate");
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
}

#[test]
fn an_adapter_of_another_base_and_a_foreign_token_are_refused() {
    let [llama, t5] = TinyBase::all();
    let (trained, _) = llama.train(&lora(), &spec(), &llama.rows(8));
    let error = predict(&t5.base, Some(&trained.adapter), &[vec![1]], 2, &mut |_, _| true).expect_err("another base");
    assert!(error.to_string().contains("does not fit this base"), "{error}");
    let error = predict(&llama.base, None, &[vec![4096]], 2, &mut |_, _| true).expect_err("foreign token");
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
}
