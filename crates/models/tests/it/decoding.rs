//! Decoding step by step equals whole sequences; rows may leave and join.

use tailor_domain::Family;
use tailor_models::{Input, Pass};
use tch::{Kind, Tensor};

use crate::{Golden, load, prompts, relative_difference};

const CASES: [&str; 4] = ["llama-gqa-nf4", "mistral-window", "t5-v11-nf4", "mt5"];

/// Logits after `prompt` and then `answer`, all at once.
pub fn at_once(name: &str, prompt: &[u32], answer: &[u32]) -> Tensor {
    let base = load(name);
    let tensor = |ids: &[u32]| Tensor::from_slice(&ids.iter().map(|&id| id as i64).collect::<Vec<_>>()).unsqueeze(0);
    let hidden = match base.family() {
        Family::Decoder => {
            let ids = tensor(&[prompt, answer].concat());
            base.hidden(&Input::Decoder { ids: &ids, mask: None }, &Pass::base()).unwrap()
        }
        Family::EncoderDecoder => {
            let (ids, decoder_ids) = (tensor(prompt), tensor(&[&[0], answer].concat()));
            let input = Input::EncoderDecoder { ids: &ids, mask: None, decoder_ids: &decoder_ids };
            base.hidden(&input, &Pass::base()).unwrap()
        }
    };
    base.head(&hidden.select(1, -1), &Pass::base())
}

#[test]
fn steps_equal_whole_sequences() {
    for name in CASES {
        let base = load(name);
        let prompts = prompts(&Golden::of(name));
        let (mut logits, mut decoding) = base.start(&prompts, &Pass::base()).unwrap();
        let answers = [[11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26], [31, 32, 33, 34, 35, 36]];
        for length in 0..=6 {
            for (row, prompt) in prompts.iter().enumerate() {
                let expected = at_once(name, prompt, &answers[row][..length]);
                let difference = relative_difference(&logits.get(row as i64).unsqueeze(0), &expected);
                assert!(difference < 1e-5, "{name}, row {row}, {length} tokens: {difference}");
            }
            if length < 6 {
                logits = base.step(&answers.map(|answer| answer[length]), &mut decoding, &Pass::base()).unwrap();
            }
        }
    }
}

#[test]
fn rows_that_left_and_joined_go_on_as_if_alone() {
    for name in CASES {
        let base = load(name);
        let prompts = prompts(&Golden::of(name));
        let pass = Pass::base();
        let (_, mut first) = base.start(&prompts[..2], &pass).unwrap();
        let _ = base.step(&[11, 21], &mut first, &pass).unwrap();
        first.keep(&[1]).unwrap(); // the long row leaves; its padding goes with it
        assert_eq!(first.rows(), 1);
        let (_, second) = base.start(&[prompts[2].clone(), prompts[0].clone()], &pass).unwrap();
        let mut joined = first.join(second);
        let _ = base.step(&[22, 31, 41], &mut joined, &pass).unwrap();
        joined.keep(&[2, 0, 1]).unwrap();
        let logits = base.step(&[42, 23, 32], &mut joined, &pass).unwrap();
        let expected = [
            at_once(name, &prompts[0], &[41, 42]),
            at_once(name, &prompts[1], &[21, 22, 23]),
            at_once(name, &prompts[2], &[31, 32]),
        ];
        for (row, expected) in expected.iter().enumerate() {
            let difference = relative_difference(&logits.get(row as i64).unsqueeze(0), expected);
            assert!(difference < 1e-5, "{name}, row {row}: {difference}");
        }
        assert!(joined.bytes() > 0 && joined.length() > 0);
    }
}

#[test]
fn padding_on_either_side_changes_nothing() {
    let base = load("llama-gqa-nf4");
    let ids = Tensor::from_slice(&[0i64, 0, 5, 6, 7, 5, 6, 7, 0, 0]).view([2, 5]);
    let mask = Tensor::from_slice(&[0i64, 0, 1, 1, 1, 1, 1, 1, 0, 0]).view([2, 5]);
    let hidden = base.hidden(&Input::Decoder { ids: &ids, mask: Some(&mask) }, &Pass::base()).unwrap();
    assert!(!hidden.isnan().any().int64_value(&[]).eq(&1), "padded rows are finite too");
    let (left, right) = (hidden.get(0).narrow(0, 2, 3), hidden.get(1).narrow(0, 0, 3));
    assert!(relative_difference(&left, &right) < 1e-5);
}

#[test]
fn packed_texts_do_not_see_each_other() {
    // The last has windows shorter than the texts.
    for name in ["llama-gqa-nf4", "gemma3", "mistral-window"] {
        let base = load(name);
        let texts: [&[i64]; 4] = [&[5, 6, 7, 8, 9, 10, 11], &[12], &[20, 21, 22, 23, 24], &[30, 31]];
        let ids: Vec<i64> = [texts.concat(), vec![0, 0, 0]].concat();
        let numbers = texts.iter().zip(1i64..).flat_map(|(text, number)| vec![number; text.len()]);
        let mask: Vec<i64> = numbers.chain([0, 0, 0]).collect();
        let (ids, mask) = (Tensor::from_slice(&ids).unsqueeze(0), Tensor::from_slice(&mask).unsqueeze(0));
        let packed = base.hidden(&Input::Decoder { ids: &ids, mask: Some(&mask) }, &Pass::base()).unwrap();
        let mut start = 0;
        for text in texts {
            let alone = Tensor::from_slice(text).unsqueeze(0);
            let alone = base.hidden(&Input::Decoder { ids: &alone, mask: None }, &Pass::base()).unwrap();
            let difference = relative_difference(&packed.narrow(1, start, text.len() as i64), &alone);
            assert!(difference < 1e-5, "{name}, text at {start}: {difference}");
            start += text.len() as i64;
        }
    }
}

#[test]
fn requests_the_model_cannot_take_are_refused() {
    let base = load("llama-gqa-nf4");
    let refused = |prompts: &[Vec<u32>]| match base.start(prompts, &Pass::base()) {
        Ok(_) => panic!("must be refused"),
        Err(error) => error.to_string(),
    };
    assert!(refused(&[]).contains("no prompt"));
    assert!(refused(&[vec![]]).contains("prompt 0 has no token"));
    assert!(refused(&[vec![5], vec![96]]).contains("token 96"));
    assert!(refused(&[vec![5; 65]]).contains("65 tokens; the model takes 64"));
    let (_, mut decoding) = base.start(&[vec![5]], &Pass::base()).unwrap();
    assert!(base.step(&[5, 6], &mut decoding, &Pass::base()).is_err());
    assert!(decoding.keep(&[1]).is_err());
    let ids = Tensor::zeros([1, 3], (Kind::Int64, tch::Device::Cpu));
    let wrong = Input::EncoderDecoder { ids: &ids, mask: None, decoder_ids: &ids };
    assert!(base.hidden(&wrong, &Pass::base()).unwrap_err().to_string().contains("llama"));
}
