use tailor_domain::spec::LossOn;

use super::*;
use crate::chat::{ChatOptions, Message};
use crate::error::{Error, Refusal};
use crate::rows::RowContent;
use crate::seed::SplitMix;
use crate::template::PromptTemplate;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::tests::{byte_level, unigram, word_level};

const CHATML: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}\
                      {% if add_generation_prompt %}<|assistant|>{% endif %}";

fn builder(tokenizer: Tokenizer, template: &str, family: Family) -> ExampleBuilder {
    ExampleBuilder::new(tokenizer, PromptTemplate::parse(template, None).expect("valid"), family).expect("has eos")
}

fn decoder_parts(example: Example) -> (Vec<u32>, Vec<u32>) {
    let Example::Decoder { ids, in_loss } = example else { panic!("a decoder's example") };
    assert_eq!(ids.len(), in_loss.len());
    let split = in_loss.iter().position(|counts| *counts).expect("something counts");
    assert!(in_loss[split..].iter().all(|counts| *counts), "the answer counts to its end");
    (ids[..split].to_vec(), ids[split..].to_vec())
}

#[test]
fn a_plain_decoder_learns_the_target_and_the_end() {
    let builder = builder(byte_level(None), "Fix: {input} =>", Family::Decoder);
    let tokenizer = builder.tokenizer().clone();
    let (prompt, answer) = decoder_parts(builder.example("a b", " A b.", 64).expect("fits"));
    assert_eq!(prompt, builder.prompt("a b").expect("prompt").ids, "training and serving ask the same");
    assert_eq!(prompt.first().copied(), tokenizer.bos());
    assert_eq!(tokenizer.decode(&prompt, true).expect("decodes"), "Fix: a b =>");
    assert_eq!(answer.last().copied(), tokenizer.eos());
    assert_eq!(tokenizer.decode(&answer, true).expect("decodes"), " A b.");
}

#[test]
fn a_chat_decoder_learns_the_assistants_message_and_stops_at_the_end_token() {
    let builder = builder(byte_level(Some(CHATML)), "Fix: {input}", Family::Decoder);
    let tokenizer = builder.tokenizer().clone();
    let (prompt, answer) = decoder_parts(builder.example("a b", "A b.", 64).expect("fits"));
    let asked = builder.prompt("a b").expect("prompt");
    assert_eq!(asked.text, "<|user|>Fix: a b</s>\n<|assistant|>");
    assert_eq!(prompt, asked.ids);
    assert_eq!(tokenizer.decode(&answer, false).expect("decodes"), "A b.</s>", "not the line end after it");
}

#[test]
fn a_template_without_an_end_token_gets_one() {
    let chat = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let builder = builder(byte_level(Some(chat)), "{input}", Family::Decoder);
    let (_, answer) = decoder_parts(builder.example("q", "a", 64).expect("fits"));
    assert_eq!(builder.tokenizer().decode(&answer, false).expect("decodes"), "a</s>");
}

#[test]
fn a_template_that_answers_elsewhere_than_it_is_asked_is_refused() {
    let chat =
        "{% if add_generation_prompt %}ask{% else %}{% for m in messages %}{{ m.content }}{% endfor %}{% endif %}";
    let builder = builder(byte_level(Some(chat)), "{input}", Family::Decoder);
    let error = builder.example("q", "a", 64).expect_err("no common beginning");
    assert!(matches!(error, Error::ChatTemplate { .. }), "{error}");
}

#[test]
fn an_encoder_decoder_gets_both_ends() {
    let builder = builder(unigram(), "{input}", Family::EncoderDecoder);
    let tokenizer = builder.tokenizer().clone();
    let Example::EncoderDecoder { encoder, labels } = builder.example("the cat", "cats", 16).expect("fits") else {
        panic!("an encoder-decoder's example")
    };
    assert_eq!(encoder, builder.prompt("the cat").expect("prompt").ids);
    assert_eq!(
        encoder,
        tokenizer.encode_with_special("the cat").expect("encodes"),
        "as the tokenizer itself ends a text"
    );
    assert_eq!(labels.last().copied(), tokenizer.eos());
    assert_eq!(tokenizer.decode(&labels, true).expect("decodes"), "cats");
}

#[test]
fn a_row_over_the_limit_or_without_a_target_is_refused_with_the_figures() {
    let builder = builder(byte_level(None), "{input}", Family::Decoder);
    // Begin token, 4 bytes, 3 bytes, end token.
    assert_eq!(builder.example("abcd", "xyz", 9).expect("fits exactly").tokens(), 9);
    let error = builder.example("abcd", "xyz", 8).expect_err("too long");
    assert!(matches!(error, Error::Row(Refusal::TooLong { tokens: 9, limit: 8 })), "{error}");
    let error = builder.example("abcd", "", 99).expect_err("no target");
    assert!(matches!(error, Error::Row(Refusal::NothingToLearn)), "{error}");
}

#[test]
fn a_tokenizer_that_merges_over_the_border_keeps_the_prompt_as_served() {
    // A word-level tokenizer joins "un" and "do" into one word unless the prompt is kept apart.
    let builder = builder(word_level(), "{input}", Family::Decoder);
    let (prompt, answer) = decoder_parts(builder.example("un", "do", 16).expect("fits"));
    assert_eq!(prompt, builder.prompt("un").expect("prompt").ids);
    assert_eq!(answer.len(), 2, "the target's word and the end token");
}

#[test]
fn every_target_token_counts_and_no_prompt_token_does() {
    let builder = builder(byte_level(Some(CHATML)), "Fix {input}", Family::Decoder);
    let tokenizer = builder.tokenizer().clone();
    for (input, target) in [("x", "y"), ("größe", "Größe!"), ("a\nb", "  c"), ("</s>", "x</s>y"), ("日本", "語")]
    {
        let example = builder.example(input, target, 512).expect("fits");
        let counted = example.tokens_in_loss();
        let (prompt, answer) = decoder_parts(example);
        assert_eq!(counted, answer.len());
        assert!(tokenizer.decode(&prompt, false).expect("decodes").ends_with("<|assistant|>"));
    }
}

#[test]
fn an_end_token_within_the_target_ends_it() {
    let builder = builder(byte_level(None), "{input}", Family::Decoder);
    let (_, answer) = decoder_parts(builder.example("q", "ab</s>cd", 64).expect("fits"));
    assert_eq!(builder.tokenizer().decode(&answer, false).expect("decodes"), "ab</s>");
    let error = builder.example("q", "</s>cd", 64).expect_err("nothing before the end");
    assert!(matches!(error, Error::Row(Refusal::NothingToLearn)), "{error}");
}

/// As `CHATML`, and the template says itself what the assistant said.
const MARKED: &str = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                      {{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}\
                      {% if add_generation_prompt %}<|assistant|>{% endif %}";
/// Drops what was thought once a user has spoken again, as Qwen's does.
const FORGETFUL: &str = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}hm. {% endif %}\
                         {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
const MODES: [LossOn; 3] = [LossOn::Completion, LossOn::Assistant, LossOn::Everything];

fn conversation(turns: &[(&str, &str)]) -> RowContent {
    RowContent::Conversation { messages: turns.iter().map(|(role, text)| Message::new(*role, *text)).collect() }
}

fn preference(prompt: &str, chosen: &str, rejected: &str) -> RowContent {
    RowContent::Preference { prompt: prompt.into(), chosen: chosen.into(), rejected: rejected.into() }
}

/// What counts, as text; runs that are apart have a bar between them.
fn counted(builder: &ExampleBuilder, row: &RowContent, loss_on: LossOn) -> String {
    let example = builder.row_example(row, loss_on, 4096).expect("an example");
    let Example::Decoder { ids, in_loss } = example else { panic!("a decoder's example") };
    let mut runs: Vec<Vec<u32>> = vec![Vec::new()];
    for (id, counts) in ids.iter().zip(in_loss) {
        match (counts, runs.last_mut()) {
            (true, Some(run)) => run.push(*id),
            (false, Some(run)) if !run.is_empty() => runs.push(Vec::new()),
            _ => {}
        }
    }
    let text = |run: &Vec<u32>| builder.tokenizer().decode(run, false).expect("decodes");
    runs.iter().filter(|run| !run.is_empty()).map(text).collect::<Vec<_>>().join("|")
}

#[test]
fn each_mode_counts_what_it_says() {
    let row =
        conversation(&[("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "größe")]);
    for template in [CHATML, MARKED] {
        let builder = builder(byte_level(Some(template)), "", Family::Decoder);
        assert_eq!(counted(&builder, &row, LossOn::Completion), "größe</s>");
        assert_eq!(counted(&builder, &row, LossOn::Assistant), "a1</s>|größe</s>");
        // The first byte has no predictor.
        let everything = "|system|>s</s>\n<|user|>q1</s>\n<|assistant|>a1</s>\n<|user|>q2</s>\n<|assistant|>größe</s>";
        assert_eq!(counted(&builder, &row, LossOn::Everything), everything);
    }
}

#[test]
fn answers_to_a_conversation_are_compared_after_all_its_turns() {
    let messages = [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")];
    let row = RowContent::PreferredTurn {
        messages: messages.map(|(role, text)| Message::new(role, text)).to_vec(),
        chosen: "yes".into(),
        rejected: "no".into(),
    };
    // No prompt template: turns of a conversation are as they are in training.
    let builder = builder(byte_level(Some(CHATML)), "Fix: {input}", Family::Decoder);
    let pair = builder.preference(&row, 4096).expect("two answers");
    let prompt = builder.row_prompt(&row).expect("a prompt");
    assert!(prompt.text.ends_with("<|user|>q2</s>\n<|assistant|>"), "{}", prompt.text);
    for (example, says) in [(&pair.chosen, "yes</s>"), (&pair.rejected, "no</s>")] {
        let Example::Decoder { ids, in_loss } = example else { panic!("a decoder's example") };
        assert_eq!(ids[..prompt.ids.len()], prompt.ids);
        assert_eq!(in_loss.iter().filter(|counts| **counts).count(), ids.len() - prompt.ids.len());
        assert_eq!(builder.tokenizer().decode(&ids[prompt.ids.len()..], false).expect("decodes"), says);
    }
    assert_eq!(counted(&builder, &row, LossOn::Assistant), "a1</s>|yes</s>", "sft learns the chosen answer");
    let error = self::builder(byte_level(None), "", Family::Decoder).preference(&row, 99).expect_err("no template");
    assert!(matches!(error, Error::ChatTemplate { .. }), "{error}");
}

#[test]
fn input_and_target_take_every_mode_of_a_decoder() {
    let row = RowContent::InputTarget { input: "q".into(), target: "a".into() };
    for chat in [None, Some(CHATML)] {
        let builder = builder(byte_level(chat), "Fix: {input}", Family::Decoder);
        for mode in [LossOn::Completion, LossOn::Assistant] {
            assert_eq!(counted(&builder, &row, mode), "a</s>");
        }
        assert!(counted(&builder, &row, LossOn::Everything).contains("Fix: q"));
    }
}

#[test]
fn a_template_that_rewrites_earlier_turns_is_refused_where_they_count() {
    let builder = builder(byte_level(Some(FORGETFUL)), "", Family::Decoder);
    let row = conversation(&[("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]);
    assert_eq!(counted(&builder, &row, LossOn::Completion), "hm. a2</s>");
    let error = builder.row_example(&row, LossOn::Assistant, 4096).expect_err("no prefix");
    assert!(matches!(error, Error::ChatTemplate { .. }), "{error}");
    assert!(error.to_string().contains("message 2") && error.to_string().contains("loss_on completion"), "{error}");
    let single = conversation(&[("user", "q"), ("assistant", "a")]);
    assert_eq!(counted(&builder, &single, LossOn::Assistant), "hm. a</s>", "with one turn there is nothing to find");
}

#[test]
fn marks_that_cannot_be_followed_give_way_to_rendering_turn_by_turn() {
    let trimmed = MARKED.replace("{% for m", "{% set all %}{% for m").replace(
        "{% if add_generation_prompt %}",
        "{% endset %}{{ all | replace('\u{FDD0}', '') }}{% if add_generation_prompt %}",
    );
    let builder = builder(byte_level(Some(&trimmed)), "", Family::Decoder);
    let row = conversation(&[("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]);
    assert_eq!(counted(&builder, &row, LossOn::Assistant), "a1</s>|a2</s>");
}

#[test]
fn an_assistant_that_speaks_first_counts_only_where_the_template_marks_it() {
    let row = conversation(&[("assistant", "hello"), ("user", "q"), ("assistant", "a")]);
    let marked = builder(byte_level(Some(MARKED)), "", Family::Decoder);
    assert_eq!(counted(&marked, &row, LossOn::Assistant), "hello</s>|a</s>");
    let plain = builder(byte_level(Some(CHATML)), "", Family::Decoder);
    let error = plain.row_example(&row, LossOn::Assistant, 4096).expect_err("cannot be found");
    assert!(matches!(error, Error::Row(Refusal::Template { .. })), "{error}");
    assert_eq!(counted(&plain, &row, LossOn::Completion), "a</s>");
}

#[test]
fn a_conversation_that_the_template_refuses_costs_itself_alone() {
    let strict =
        format!("{{% if messages[0].role != 'user' %}}{{{{ raise_exception('user first') }}}}{{% endif %}}{CHATML}");
    let builder = builder(byte_level(Some(&strict)), "", Family::Decoder);
    let row = conversation(&[("system", "s"), ("user", "q"), ("assistant", "a")]);
    for mode in MODES {
        let error = builder.row_example(&row, mode, 4096).expect_err("refused");
        let Error::Row(Refusal::Template { problem }) = &error else { panic!("{error}") };
        assert!(problem.contains("user first"), "{problem}");
    }
    assert!(builder.row_example(&conversation(&[("user", "q"), ("assistant", "a")]), LossOn::Assistant, 99).is_ok());
}

#[test]
fn conversations_need_a_chat_template() {
    let row = conversation(&[("user", "q"), ("assistant", "a")]);
    for builder in [builder(byte_level(None), "", Family::Decoder), builder(unigram(), "", Family::EncoderDecoder)] {
        let error = builder.row_example(&row, LossOn::Completion, 99).expect_err("no template");
        assert!(matches!(error, Error::ChatTemplate { .. }), "{error}");
        assert!(error.to_string().contains("input and target"), "{error}");
    }
}

#[test]
fn an_encoder_decoder_counts_its_labels_and_refuses_everything_by_name() {
    let builder = builder(unigram(), "{input}", Family::EncoderDecoder);
    let row = RowContent::InputTarget { input: "the cat".into(), target: "cats".into() };
    let completion = builder.row_example(&row, LossOn::Completion, 16).expect("fits");
    assert_eq!(builder.row_example(&row, LossOn::Assistant, 16).expect("fits"), completion);
    let error = builder.row_example(&row, LossOn::Everything, 16).expect_err("not predicted");
    assert!(error.to_string().contains("train.loss_on") && error.to_string().contains("encoder"), "{error}");
}

#[test]
fn a_row_whose_mask_would_be_empty_is_refused_in_every_mode() {
    let chat = builder(byte_level(Some(CHATML)), "", Family::Decoder);
    let bare = builder(byte_level(None), "", Family::Decoder);
    for mode in MODES {
        let turns = conversation(&[("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "</s>x")]);
        let pair = RowContent::InputTarget { input: "q".into(), target: "</s>x".into() };
        for (builder, row) in [(&chat, &turns), (&chat, &pair), (&bare, &pair)] {
            let error = builder.row_example(row, mode, 999).expect_err("nothing before the end");
            assert!(matches!(error, Error::Row(Refusal::NothingToLearn)), "{mode}: {error}");
        }
    }
    let error = bare.preference(&preference("q", "a", "</s>x"), 99).expect_err("an empty answer");
    assert!(matches!(error, Error::Row(Refusal::NothingToLearn)), "{error}");
}

#[test]
fn modes_hold_one_another_and_never_change_the_ids() {
    let words = ["a", "hello there", "größe", "  b ", "日本", "x</s>y", "\n", "<|user|>"];
    let mut random = SplitMix::new(11);
    let builders = [CHATML, MARKED].map(|chat| builder(byte_level(Some(chat)), "", Family::Decoder));
    for round in 0..200 {
        let mut turns = Vec::new();
        if random.below(2) == 0 {
            turns.push(("system", words[random.below(words.len())]));
        }
        for _ in 0..1 + random.below(4) {
            turns.push(("user", words[random.below(words.len())]));
            turns.push(("assistant", words[random.below(5)]));
        }
        let row = conversation(&turns);
        for builder in &builders {
            let made = MODES.map(|mode| builder.row_example(&row, mode, 4096).expect("an example"));
            let [completion, assistant, everything] = made.map(|example| match example {
                Example::Decoder { ids, in_loss } => (ids, in_loss),
                Example::EncoderDecoder { .. } => panic!("a decoder's example"),
            });
            assert!(completion.0 == assistant.0 && assistant.0 == everything.0, "round {round}: {turns:?}");
            let within =
                |small: &[bool], large: &[bool]| small.iter().zip(large).all(|(small, large)| !small || *large);
            assert!(within(&completion.1, &assistant.1) && within(&assistant.1, &everything.1), "round {round}");
            assert!(!everything.1[0] && everything.1[1..].iter().all(|counts| *counts), "all but the first");
            let asked = builder.row_prompt(&row).expect("a prompt");
            assert!(completion.0.starts_with(&asked.ids), "what is asked for is what was learnt");
            assert_eq!(completion.1.iter().position(|counts| *counts), Some(asked.ids.len()));
            let said = turns.iter().filter(|(role, _)| *role == "assistant").count();
            let runs = assistant.1.windows(2).filter(|pair| pair == &[false, true]).count();
            assert_eq!(runs, said, "each turn is one run: {turns:?}");
        }
    }
}

#[test]
fn a_preference_is_one_prompt_with_two_answers() {
    let pair = preference("q", "good", "bad one");
    for chat in [None, Some(CHATML)] {
        let builder = builder(byte_level(chat), "Say: {input} ", Family::Decoder);
        let Preference { chosen, rejected } = builder.preference(&pair, 99).expect("a pair");
        let asked = builder.row_prompt(&pair).expect("a prompt");
        for (example, answer) in [(chosen.clone(), "good</s>"), (rejected, "bad one</s>")] {
            let (prompt, said) = decoder_parts(example);
            assert_eq!(prompt, asked.ids);
            assert_eq!(builder.tokenizer().decode(&said, false).expect("decodes"), answer);
        }
        let learnt = builder.row_example(&pair, LossOn::Completion, 99).expect("an example");
        assert_eq!(learnt, chosen, "sft learns the chosen answer");
    }
    let t5 = builder(unigram(), "{input}", Family::EncoderDecoder);
    let pair = t5.preference(&preference("the cat", "cats", "cat"), 99).expect("a pair");
    let Example::EncoderDecoder { encoder, labels } = &pair.rejected else { panic!("an encoder-decoder's example") };
    assert_eq!(encoder, &t5.prompt("the cat").expect("a prompt").ids);
    assert_eq!(labels.last().copied(), t5.tokenizer().eos());
    assert_eq!(pair.tokens(), pair.chosen.tokens() + pair.rejected.tokens());
}

#[test]
fn the_limit_of_a_preference_is_that_of_its_longer_half() {
    let builder = builder(byte_level(None), "{input}", Family::Decoder);
    // Begin token, 2 bytes; 1 and 4 bytes, each with an end token.
    for pair in [preference("ab", "c", "defg"), preference("ab", "defg", "c")] {
        assert!(builder.preference(&pair, 8).is_ok());
        let error = builder.preference(&pair, 7).expect_err("too long");
        assert!(matches!(error, Error::Row(Refusal::TooLong { tokens: 8, limit: 7 })), "{error}");
    }
    let same = preference("q", "a</s>b", "a</s>c");
    let error = builder.preference(&same, 99).expect_err("cut at the end token they are one");
    assert!(matches!(error, Error::Row(Refusal::SameAnswer)), "{error}");
    let row = RowContent::InputTarget { input: "q".into(), target: "a".into() };
    assert!(builder.preference(&row, 99).expect_err("no pair").to_string().contains("kind input-target"));
}

#[test]
fn a_conversation_is_asked_turn_by_turn_and_a_single_turn_as_a_prompt_is() {
    let builder = builder(byte_level(Some(CHATML)), "Fix: {input}", Family::Decoder);
    let turn = Message::new;
    let single = builder.conversation(&[turn("user", "a b")], &ChatOptions::default()).expect("rendered");
    assert_eq!(single, builder.prompt("a b").expect("prompt"));
    let turns = [turn("system", "s"), turn("user", "a"), turn("assistant", "A"), turn("user", "b")];
    let several = builder.conversation(&turns, &ChatOptions::default()).expect("rendered");
    let wanted = "<|system|>s</s>\n<|user|>Fix: a</s>\n<|assistant|>A</s>\n<|user|>Fix: b</s>\n<|assistant|>";
    assert_eq!(several.text, wanted, "the user's turns go through the prompt template, as in training");
    assert_eq!(several.ids, builder.tokenizer().encode(wanted).expect("encodes"));
}

#[test]
fn a_conversation_without_a_chat_template_is_refused_but_for_a_single_turn() {
    for (tokenizer, family) in [(byte_level(None), Family::Decoder), (unigram(), Family::EncoderDecoder)] {
        let builder = builder(tokenizer, "{input}", family);
        let single = builder.conversation(&[Message::new("user", "the cat")], &ChatOptions::default()).expect("asked");
        assert_eq!(single, builder.prompt("the cat").expect("prompt"));
        let turns = [Message::new("system", "s"), Message::new("user", "the cat")];
        let error = builder.conversation(&turns, &ChatOptions::default()).expect_err("no template");
        assert!(error.to_string().contains("send a single turn"), "{error}");
    }
}
