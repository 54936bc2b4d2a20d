use super::*;
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
