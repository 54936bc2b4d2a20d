//! A step of serving where kernels are: on the host under the emulation of CUDA, or on the GPU that `TAILOR_TEST_DEVICE`
//! names.

use tailor_models::{Base, Compute, LoadOptions, LoraSet, Segment};
use tailor_torch::kernels::test_device;
use tch::Device;

use crate::fused::{Case, adapter, in_pages, mixed, whole};
use crate::relative_difference;

/// Norms after layers, windows, caps, an activation by tanh, a scaled embedding.
const GEMMA2: &str = r#"{"model_type":"gemma2","hidden_size":128,"num_hidden_layers":3,"intermediate_size":192,"head_dim":64,
    "num_attention_heads":6,"num_key_value_heads":1,"vocab_size":96,"max_position_embeddings":128,"rms_norm_eps":1e-6,
    "rope_theta":10000.0,"hidden_activation":"gelu_pytorch_tanh","sliding_window":8,"query_pre_attn_scalar":32,
    "attn_logit_softcapping":20.0,"final_logit_softcapping":10.0,"tie_word_embeddings":true,"bos_token_id":0,
    "eos_token_id":1,"pad_token_id":0,"initializer_range":0.2}"#;

/// Where kernels are tried.
fn device() -> Device {
    test_device().expect("a C++ compiler, or the GPU that TAILOR_TEST_DEVICE names")
}

fn with_kernels(case: &Case) -> Base {
    let base = Base::load(&case.folder, &LoadOptions { compute: Compute::Bf16, device: device() }).unwrap();
    assert!(base.is_fused(), "{}", case.name);
    base
}

fn served(base: &Base) -> [LoraSet; 2] {
    let mut sets = [adapter(base, 1), adapter(base, 3)];
    sets.iter_mut().for_each(|set| set.serve(base).unwrap());
    sets
}

#[test]
fn a_step_by_kernels_is_as_near_to_f32_as_operators_in_bf16_are() {
    let scratch = tempfile::tempdir().unwrap();
    for case in [Case::four_bit(scratch.path()), Case::quantized(scratch.path(), "gemma2", GEMMA2)] {
        // On the CPU, before its tensors have kernels.
        let exact = case.load(Compute::F32);
        let reference = [false, true].map(|with| {
            let sets = [adapter(&exact, 1), adapter(&exact, 3)];
            whole(&exact, &mixed(&case.prompts, &sets, with))
        });
        let base = with_kernels(&case);
        for (with, reference) in [false, true].into_iter().zip(reference) {
            // Other random numbers than the CPU's come from a GPU: the factors are carried over.
            let sets = [1, 3].map(|seed| carried(&adapter(&exact, seed), &base));
            let step = in_pages(&base, &mixed(&case.prompts, &sets, with)).to_device(Device::Cpu);
            let difference = relative_difference(&step, &reference);
            println!("{}, adapters {with}: {difference:.1e}", case.name);
            assert!(difference < 6e-2, "{}, adapters {with}: {difference}", case.name);
        }
    }
}

/// The same factors where the base is, as serving reads them.
fn carried(set: &LoraSet, base: &Base) -> LoraSet {
    let mut copy = LoraSet::empty(base);
    for (linear, lora) in set.iter() {
        let [a, b] = [&lora.a, &lora.b].map(|tensor| tensor.to_device(base.device()));
        copy.insert(&linear.path, tailor_models::Lora { a, b, scale: lora.scale, dropout: 0.0 }).unwrap();
    }
    copy.serve(base).unwrap();
    copy
}

/// In pieces of a few tokens: as many rows as go by kernels, whoever else is in the step.
#[test]
fn a_sequence_gets_the_same_bits_by_kernels_in_whatever_company() {
    let scratch = tempfile::tempdir().unwrap();
    let base = with_kernels(&Case::four_bit(scratch.path()));
    let sets = served(&base);
    let prompts: Vec<Vec<u32>> =
        [9u32, 2, 5, 7].iter().map(|length| (0..*length).map(|i| 2 + (i * 37 + length) % 90).collect()).collect();
    let all = mixed(&prompts, &sets, true);
    let together = in_pages(&base, &all);
    for (row, one) in all.iter().enumerate() {
        let alone = in_pages(&base, &[*one]);
        assert!(alone.get(0).equal(&together.get(row as i64)), "sequence {row}");
    }
}

#[test]
fn a_long_piece_of_a_prompt_changes_no_bit_of_what_is_decoded_beside_it() {
    let scratch = tempfile::tempdir().unwrap();
    let base = with_kernels(&Case::four_bit(scratch.path()));
    let sets = served(&base);
    let pool = base.kv_pool(64).unwrap();
    let segment = |tokens, past, blocks, adapter| Segment {
        tokens,
        past,
        blocks,
        cross: None,
        adapter,
        logits: 1,
        likeliest: false,
    };
    let long: Vec<u32> = (0..40).map(|i| 2 + i * 7 % 90).collect();
    let _ =
        base.advance(&[segment(&[5, 9, 11], 0, &[0], Some(&sets[0])), segment(&[7, 8], 0, &[1], None)], &pool).unwrap();
    let decoded = [segment(&[13], 3, &[0], Some(&sets[0])), segment(&[17], 2, &[1], None)];
    let alone = base.advance(&decoded, &pool).unwrap();
    let between = [decoded[0], segment(&long, 0, &[2, 3, 4], Some(&sets[1])), decoded[1]];
    let together = base.advance(&between, &pool).unwrap();
    assert_eq!(together.size()[0], 3);
    assert!(together.get(0).equal(&alone.get(0)) && together.get(2).equal(&alone.get(1)));
    let prompt = base.advance(&between[1..2], &pool).unwrap();
    assert!(together.get(1).equal(&prompt.get(0)), "logits are in the order of the segments");
}
