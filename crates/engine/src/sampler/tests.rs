//! Against transformers on fixed logits (tests/golden/sampling), and the draws against their distribution.

use serde_json::Value;

use super::*;

fn sampling(temperature: f32, top_p: f32, top_k: u32) -> Sampling {
    Sampling { temperature, top_p, top_k, seed: Some(11), ..Sampling::GREEDY }
}

fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
    let mut sampler = Sampler::new(sampling, &[]);
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..20_000 {
        counts[sampler.pick(&mut logits.to_vec()).expect("a token") as usize] += 1.0 / 20_000.0;
    }
    counts
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number") as f32).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn what_may_be_drawn_and_how_likely_equals_transformers_on_fixed_logits() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../../tests/golden/sampling/sampling.json")).expect("JSON");
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() >= 200, "{}", cases.len());
    for (number, case) in cases.iter().enumerate() {
        let settings = &case["settings"];
        let get = |name: &str, default: f32| settings.get(name).map_or(default, |v| v.as_f64().expect("number") as f32);
        let bias = settings.get("logit_bias").and_then(Value::as_object);
        let bias = bias
            .into_iter()
            .flatten()
            .map(|(token, bias)| (token.parse().expect("a token"), bias.as_f64().expect("a number") as f32));
        let sampling = Sampling {
            temperature: get("temperature", 0.0),
            top_p: get("top_p", 1.0),
            top_k: get("top_k", 0.0) as u32,
            min_p: get("min_p", 0.0),
            repetition_penalty: get("repetition_penalty", 1.0),
            presence_penalty: get("presence_penalty", 0.0),
            frequency_penalty: get("frequency_penalty", 0.0),
            logit_bias: bias.collect(),
            seed: Some(1),
        };
        let logits = numbers(&golden["logits"][case["logits"].as_u64().expect("row") as usize]);
        let (prompt, answer) = (ids(&case["prompt"]), ids(&case["answer"]));
        let mut sampler = Sampler::new(sampling.clone(), &prompt);
        answer.iter().for_each(|token| sampler.note(*token));
        let mut greedy = Sampler::new(Sampling { temperature: 0.0, ..sampling }, &prompt);
        answer.iter().for_each(|token| greedy.note(*token));
        let best = greedy.pick(&mut logits.clone());
        assert_eq!(best, Some(case["argmax"].as_u64().expect("token") as u32), "case {number}: {settings}");
        if sampler.sampling.temperature == 0.0 {
            continue;
        }
        let mut processed = logits.clone();
        sampler.process(&mut processed);
        let kept = sampler.candidates(&processed);
        let mass: f32 = kept.iter().map(|(_, weight)| weight).sum();
        // Where an exponential becomes 0 is the library's own.
        let drawable = |(_, probability): &(u32, f32)| *probability > 1e-12;
        let got = kept.iter().map(|(token, weight)| (*token, weight / mass)).filter(drawable);
        let got = likeliest_first(got.collect());
        let wanted = ids(&case["kept"]).into_iter().zip(numbers(&case["probabilities"])).filter(drawable);
        let wanted = likeliest_first(wanted.collect());
        assert_eq!(got.len(), wanted.len(), "case {number}: {settings}");
        let least = wanted.last().map_or(0.0, |(_, probability)| *probability);
        for ((token, got), (wanted_token, wanted)) in got.iter().zip(&wanted) {
            // f32 exponentials of two libraries.
            assert!((got - wanted).abs() < 1e-5, "case {number}: {settings}: token {token}: {got} for {wanted}");
            // Which of several equal ones a cut leaves is left open by torch's sort.
            assert!(token == wanted_token || wanted - least < 1e-6, "case {number}: {settings}: token {token}");
        }
    }
}

/// Equal ones by their number.
fn likeliest_first(mut list: Vec<(u32, f32)>) -> Vec<(u32, f32)> {
    let rounded = |probability: f32| (probability * 1e6).round() as i64;
    list.sort_by_key(|(token, probability)| (-rounded(*probability), *token));
    list
}

#[test]
fn greedy_takes_the_first_of_the_largest_and_never_a_nan() {
    assert_eq!(greedy(&[0.0, 2.0, f32::NAN, 2.0]), Some(1));
    assert_eq!(greedy(&[f32::NAN]), None);
    assert_eq!(greedy(&[]), None);
    assert_eq!(Sampler::new(Sampling::GREEDY, &[]).pick(&mut [f32::NEG_INFINITY, -1.0]), Some(1));
}

#[test]
fn draws_follow_the_softmax_at_the_temperature() {
    let shares = shares(sampling(2.0, 1.0, 0), &[0.0, 2.0 * 3f32.ln(), f32::NEG_INFINITY]);
    assert!((shares[0] - 0.25).abs() < 0.01 && (shares[1] - 0.75).abs() < 0.01, "{shares:?}");
    assert_eq!(shares[2], 0.0);
}

#[test]
fn cuts_leave_out_the_tail_and_never_the_likeliest() {
    let logits = [4f32.ln(), 1f32.ln(), 3f32.ln(), 2f32.ln()];
    assert_eq!(shares(sampling(1.0, 1.0, 2), &logits).iter().filter(|s| **s > 0.0).count(), 2);
    let nucleus = shares(sampling(1.0, 0.69, 0), &logits);
    assert!(nucleus[0] > 0.0 && nucleus[2] > 0.0 && nucleus[1] == 0.0 && nucleus[3] == 0.0, "{nucleus:?}");
    let least = shares(sampling(1.0, 1e-6, 0), &logits);
    assert!(least[0] > 0.0 && least[1..].iter().all(|share| *share == 0.0), "the likeliest is always kept");
    let min_p = shares(Sampling { min_p: 0.6, ..sampling(1.0, 1.0, 0) }, &logits);
    assert!(min_p[0] > 0.0 && min_p[2] > 0.0 && min_p[1] == 0.0 && min_p[3] == 0.0, "{min_p:?}");
}

#[test]
fn penalties_count_the_answer_and_repetition_the_prompt_too() {
    let next = |sampling: Sampling, made: &[u32]| {
        let mut sampler = Sampler::new(sampling, &[0]);
        made.iter().for_each(|token| sampler.note(*token));
        sampler.pick(&mut [3.0, 2.5, 2.0, -1.0])
    };
    assert_eq!(next(Sampling { presence_penalty: 2.0, ..Sampling::GREEDY }, &[]), Some(0), "the prompt does not count");
    assert_eq!(next(Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY }, &[]), Some(1), "here it does");
    assert_eq!(next(Sampling { presence_penalty: 0.6, ..Sampling::GREEDY }, &[0, 0, 0]), Some(1));
    assert_eq!(next(Sampling { frequency_penalty: 0.4, ..Sampling::GREEDY }, &[0, 0, 1, 1]), Some(0));
    assert_eq!(next(Sampling { frequency_penalty: 0.4, ..Sampling::GREEDY }, &[0, 0, 0, 1, 1]), Some(2));
}

#[test]
fn one_seed_gives_one_sequence() {
    let draw = || {
        let mut sampler = Sampler::new(sampling(1.0, 1.0, 0), &[]);
        (0..50).filter_map(|_| sampler.pick(&mut [0.1, 0.2, 0.3, 0.4])).collect::<Vec<_>>()
    };
    assert_eq!(draw(), draw());
}
