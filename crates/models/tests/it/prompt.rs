//! Virtual tokens are tokens: those that are the embeddings of real ones do what the real ones do.

use tailor_domain::Family;
use tailor_models::{Base, Greedy, Input, LoraSet, Pass, Routes};
use tch::{Device, Tensor};

use crate::{Golden, load, prompts, relative_difference};

/// One of each way of masking: causal, windowed, capped and scaled, encoder-decoder.
const CASES: [&str; 6] = ["llama-gqa-nf4", "mistral-window", "gemma2", "gemma3", "t5-v11-nf4", "mt5"];
const TOLERANCE: f64 = 1e-5;

fn virtual_tokens(base: &Base, tokens: &[u32]) -> LoraSet {
    let mut set = LoraSet::empty(base);
    set.set_prompt(base, base.embed(tokens).unwrap()).unwrap();
    assert_eq!(set.virtual_tokens(), tokens.len());
    set
}

fn row(ids: &[u32]) -> Tensor {
    Tensor::from_slice(&ids.iter().map(|&id| id as i64).collect::<Vec<_>>()).unsqueeze(0)
}

/// Hidden states at the positions of `answer`, and of a decoder's prompt.
fn hidden(base: &Base, prompt: &[u32], answer: &[u32], pass: &Pass<'_>, layered: bool) -> Tensor {
    let (ids, decoder_ids) = match base.family() {
        Family::Decoder => (row(&[prompt, answer].concat()), None),
        Family::EncoderDecoder => (row(prompt), Some(row(answer))),
    };
    let input = match &decoder_ids {
        None => Input::Decoder { ids: &ids, mask: None },
        Some(decoder_ids) => Input::EncoderDecoder { ids: &ids, mask: None, decoder_ids },
    };
    match layered {
        false => base.hidden(&input, pass).unwrap(),
        true => base.hidden_layered(&input, pass).unwrap().hidden,
    }
}

#[test]
fn embeddings_of_real_tokens_before_an_input_do_what_the_tokens_do() {
    for name in CASES {
        let base = load(name);
        let (first, prompt, answer) = ([7u32, 31, 8, 44], [11u32, 12, 13], [21u32, 22]);
        let set = virtual_tokens(&base, &first);
        let spelt = [&first[..], &prompt].concat();
        for layered in [false, true] {
            let real = hidden(&base, &spelt, &answer, &Pass::base(), layered);
            let own = hidden(&base, &prompt, &answer, &Pass::one(&set), layered);
            let room = real.size()[1] - own.size()[1];
            assert_eq!(room, if base.family() == Family::Decoder { 4 } else { 0 }, "{name}");
            let difference = relative_difference(&own, &real.narrow(1, room, own.size()[1]));
            assert!(difference < TOLERANCE, "{name}, layered {layered}: {difference}");
        }
    }
}

#[test]
fn a_batch_with_prompts_of_several_lengths_decodes_as_each_row_alone() {
    for name in CASES {
        let base = load(name);
        let (short, long) = ([9u32], [7u32, 31, 8, 44, 6]);
        let sets = [virtual_tokens(&base, &short), virtual_tokens(&base, &long)];
        let prompts = prompts(&Golden::of(name));
        let rows = [(None, &prompts[0]), (Some(1), &prompts[1]), (Some(0), &prompts[2]), (Some(1), &prompts[0])];
        let routes: Vec<Option<&LoraSet>> = rows.iter().map(|(set, _)| set.map(|set: usize| &sets[set])).collect();
        let routes = Routes::new(&routes, Device::Cpu);
        let own: Vec<Vec<u32>> = rows.iter().map(|(_, prompt)| (*prompt).clone()).collect();
        let spelt: Vec<Vec<u32>> = rows
            .iter()
            .map(|(set, prompt)| {
                let before = set.map_or(&[][..], |set| [&short[..], &long][set]);
                [before, prompt].concat()
            })
            .collect();
        let (mut logits, mut decoding) = base.start(&own, &Pass::rows(&routes)).unwrap();
        let (mut expected, mut real) = base.start(&spelt, &Pass::base()).unwrap();
        for tokens in [[11, 21, 31, 41], [12, 22, 32, 42]] {
            let difference = relative_difference(&logits, &expected);
            assert!(difference < TOLERANCE, "{name}: {difference}");
            logits = base.step(&tokens, &mut decoding, &Pass::rows(&routes)).unwrap();
            expected = base.step(&tokens, &mut real, &Pass::base()).unwrap();
        }
        assert!(relative_difference(&logits, &expected) < TOLERANCE, "{name}");
        let greedy = Greedy { max_new: 5, eos: vec![1] };
        let answers = base.generate_greedy(&own[1..2], &greedy, Some(&sets[1])).unwrap();
        assert_eq!(answers, base.generate_greedy(&spelt[1..2], &greedy, None).unwrap(), "{name}");
    }
}

#[test]
fn layers_that_run_again_give_the_virtual_tokens_their_gradient() {
    for name in CASES {
        let base = load(name);
        let gradient = |layered: bool| {
            let mut set = LoraSet::empty(&base);
            let leaf = base.embed(&[7, 31, 8]).unwrap().set_requires_grad(true);
            set.set_prompt(&base, leaf.shallow_clone()).unwrap();
            let pass = Pass::training(&set);
            let (ids, answer) = (row(&[11, 12, 13, 21]), row(&[5, 6]));
            let input = match base.family() {
                Family::Decoder => Input::Decoder { ids: &ids, mask: None },
                Family::EncoderDecoder => Input::EncoderDecoder { ids: &ids, mask: None, decoder_ids: &answer },
            };
            let loss = |hidden: &Tensor| base.head(hidden, &pass).select(-1, 9).square().sum(tch::Kind::Float);
            if layered {
                let layered = base.hidden_layered(&input, &pass).unwrap();
                loss(&layered.hidden).backward();
                layered.backward().unwrap();
            } else {
                loss(&base.hidden(&input, &pass).unwrap()).backward();
            }
            leaf.grad()
        };
        let (kept, again) = (gradient(false), gradient(true));
        assert!(kept.abs().max().double_value(&[]) > 0.0, "{name}");
        let difference = relative_difference(&again, &kept);
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_figures() {
    let base = load("llama-gqa-nf4");
    let width = base.embedding_size();
    let mut set = LoraSet::empty(&base);
    let wrong = set.set_prompt(&base, Tensor::zeros([3, 5], (tch::Kind::Float, Device::Cpu))).unwrap_err().to_string();
    assert!(wrong.contains("[3, 5]") && wrong.contains(&format!("embeddings of {width}")), "{wrong}");
    assert!(set.is_empty());
    let set = virtual_tokens(&base, &[5; 10]);
    let refused = |prompt: usize| base.start(&[vec![5; prompt]], &Pass::one(&set)).map(|_| ());
    assert!(refused(54).is_ok());
    let error = refused(55).unwrap_err().to_string();
    assert!(error.contains("55 tokens and 10 virtual ones; the model takes 64"), "{error}");
    let routes = Routes::new(&[Some(&set), None], Device::Cpu);
    let ids = Tensor::from_slice(&[5i64, 6, 7, 8]).view([2, 2]);
    let whole = base.hidden(&Input::Decoder { ids: &ids, mask: None }, &Pass::rows(&routes)).unwrap_err().to_string();
    assert!(whole.contains("virtual tokens of their own"), "{whole}");
}
