//! A run learns, ends when it should, and what it leaves behind answers as trained.

use tailor_domain::{Recipe, StepMetrics, StopSpec, TrainSpec};
use tailor_train::{Observer, Outcome, predict, train};

use crate::{Steps, TinyBase, answer, lora, prompt, recipe, spec};

#[test]
fn the_loss_falls_and_the_adapter_answers_as_it_was_taught() {
    for tiny in TinyBase::all() {
        let rows = tiny.rows(24);
        let spec = TrainSpec { learning_rate: 1e-2, epochs: 40.0, max_steps: 0, ..spec() };
        let (trained, steps) = tiny.train(&lora(), &spec, &rows);
        let first = steps[0].loss;
        println!("loss {first:.3} → {:.4} in {} steps", trained.summary.final_loss, trained.summary.steps);
        assert_eq!(trained.summary.outcome, Outcome::Finished);
        assert_eq!((trained.summary.steps, steps.len()), (120, 120));
        assert!(trained.summary.final_loss < first / 10.0, "{} from {first}", trained.summary.final_loss);
        assert!(steps.iter().all(|step| step.grad_norm.is_finite() && step.grad_norm > 0.0));

        let prompts: Vec<Vec<u32>> = (0..24).map(prompt).collect();
        let wanted: Vec<Vec<u32>> = (0..24).map(answer).collect();
        let answers = |adapter| predict(&tiny.base, adapter, &prompts, 8, &mut |_, _| true).expect("predicts");
        let right = answers(Some(&trained.adapter)).iter().zip(&wanted).filter(|(got, wanted)| got == wanted).count();
        let by_base = answers(None).iter().zip(&wanted).filter(|(got, wanted)| got == wanted).count();
        println!("{right} of 24 right, the base {by_base}");
        assert!(right >= 23 && by_base <= 2, "{right} right with the adapter, {by_base} without");
    }
}

#[test]
fn an_acceptable_loss_ends_the_run_before_its_budget() {
    let tiny = TinyBase::llama();
    let spec = TrainSpec { learning_rate: 2e-2, epochs: 60.0, max_steps: 0, ..spec() };
    let stop = StopSpec { target_loss: 0.5, ..StopSpec::default() };
    let recipe = Recipe { stop, ..recipe(&lora(), &spec) };
    let mut steps = Steps::default();
    let trained = train(&tiny.base, &recipe, &tiny.rows(24), "tiny", &mut steps).expect("trains");
    let steps = steps.0;
    assert_eq!(trained.summary.outcome, Outcome::TargetLoss);
    assert!(steps.len() < 180 && steps.len() >= 20, "{} steps", steps.len());
    assert!(trained.summary.final_loss <= 0.5);
}

struct StopAfter(u64, Steps);

impl Observer for StopAfter {
    fn on_step(&mut self, step: &StepMetrics) {
        self.1.on_step(step);
    }
    fn should_stop(&mut self) -> bool {
        self.1.0.len() as u64 == self.0
    }
}

#[test]
fn a_run_stops_between_two_steps_and_keeps_what_it_learnt() {
    let tiny = TinyBase::llama();
    let rows = tiny.rows(24);
    let mut observer = StopAfter(2, Steps::default());
    let stopped = train(&tiny.base, &recipe(&lora(), &spec()), &rows, "tiny", &mut observer).expect("trains");
    assert_eq!((stopped.summary.outcome, stopped.summary.steps), (Outcome::Stopped, 2));
    assert!(stopped.adapter.check_against(&tiny.base.shapes()).is_ok());
    let [first, second] = observer.1.0.as_slice() else { panic!("two steps") };
    assert_eq!((first.step, second.step, first.total_steps), (1, 2, 3));
    assert!(first.tokens > 0 && first.tokens_per_second > 0.0 && first.learning_rate > 0.0);
    assert_eq!(stopped.summary.tokens, first.tokens + second.tokens);
    assert!(stopped.summary.peak_memory_bytes > 0);
}

#[test]
fn the_adapter_is_a_peft_adapter_of_the_modules_asked_for() {
    for tiny in TinyBase::all() {
        let name = if tiny.is_decoder() { "q_proj" } else { "q" };
        let lora = tailor_domain::LoraSpec { target_modules: vec![name.into()], ..lora() };
        let (trained, _) = tiny.train(&lora, &spec(), &tiny.rows(8));
        let config = trained.adapter.config();
        assert_eq!(config.base_model_name_or_path.as_deref(), Some("tiny"));
        assert_eq!(config.task_type.as_deref(), Some(tiny.base.family().task_type()));
        // Two layers: one attention each in the decoder-only base, three a pair of blocks in the other.
        let expected = if tiny.is_decoder() { 2 } else { 6 };
        assert_eq!(trained.adapter.pairs().len(), expected);
        assert!(trained.adapter.pairs().keys().all(|path| path.ends_with(&format!(".{name}"))));

        let (everywhere, _) = tiny.train(&crate::lora(), &spec(), &tiny.rows(8));
        assert_eq!(everywhere.adapter.pairs().len(), tiny.base.linears().len(), "every linear layer by default");
    }
}

#[test]
fn predictions_do_not_depend_on_what_else_is_asked_and_can_be_stopped() {
    for tiny in TinyBase::all() {
        let (trained, _) = tiny.train(&lora(), &spec(), &tiny.rows(24));
        let prompts: Vec<Vec<u32>> = (0..70).map(prompt).collect();
        let ask = |prompts: &[Vec<u32>]| {
            predict(&tiny.base, Some(&trained.adapter), prompts, 6, &mut |_, _| true).expect("predicts")
        };
        let together = ask(&prompts);
        let alone: Vec<Vec<u32>> = prompts.iter().flat_map(|prompt| ask(std::slice::from_ref(prompt))).collect();
        assert_eq!(together, alone);

        let mut seen = Vec::new();
        let mut stop_at_once = |done, total| {
            seen.push((done, total));
            false
        };
        let stopped = predict(&tiny.base, None, &prompts, 6, &mut stop_at_once).expect("stops");
        assert!(stopped.is_empty());
        assert_eq!(seen, [(64, 70)]);
    }
}
