//! The decoder's tokenizer: byte-level BPE, trained here, with role tokens and a chat template.

use anyhow::anyhow;
use serde_json::{Value, json};
use tailor_corpus::Generator;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::tasks::vocabulary;

pub const PAD: i64 = 0;
pub const BOS: i64 = 1;
pub const EOS: i64 = 2;

/// In the order of their ids.
const SPECIAL: [&str; 6] = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"];
/// Large enough that training stops for want of pairs: every word becomes one token.
const VOCABULARY_LIMIT: usize = 8_000;
const SENTENCES: usize = 20_000;
const SENTENCES_SEED: u64 = 43;

/// Every turn ends in `<|end|>`; the assistant's turn is what is generated.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' \
+ message['content'] | trim + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// The prompt as the template writes it, for pretraining.
pub fn chat_prompt(input: &str) -> String {
    format!("<|begin|><|user|>{input}<|end|><|assistant|>")
}

/// `tokenizer.json`.
///
/// # Errors
/// Training fails.
pub fn json() -> anyhow::Result<String> {
    let special: Vec<AddedToken> = SPECIAL.iter().map(|token| AddedToken::from(*token, true)).collect();
    let mut tokenizer = Tokenizer::new(BPE::default());
    let byte_level = ByteLevel::default().add_prefix_space(false);
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
        .vocab_size(VOCABULARY_LIMIT)
        .min_frequency(40)
        .show_progress(false)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    tokenizer.train(&mut trainer, text().into_iter()).map_err(|error| anyhow!("BPE training failed: {error}"))?;
    let begin = TemplateProcessing::builder()
        .try_single("<|begin|> $A")
        .map_err(|error| anyhow!("post-processor: {error}"))?
        .try_pair("<|begin|> $A <|begin|>:1 $B:1")
        .map_err(|error| anyhow!("post-processor: {error}"))?
        .special_tokens(vec![("<|begin|>", BOS as u32)])
        .build()?;
    tokenizer.with_post_processor(Some(begin));
    tokenizer.to_string(false).map_err(|error| anyhow!("the tokenizer cannot be written: {error}"))
}

/// `tokenizer_config.json`.
pub fn config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>",
        "pad_token": "<|pad|>", "additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"],
        "chat_template": CHAT_TEMPLATE, "model_max_length": 512, "clean_up_tokenization_spaces": false
    })
}

/// Sentences for the frequencies, and each word often enough, with and without a space before it, to become a token.
fn text() -> Vec<String> {
    let mut sentences = Generator::new(SENTENCES_SEED).with_us_percent(50);
    let mut text: Vec<String> = std::iter::repeat_with(|| sentences.sentence().text).take(SENTENCES).collect();
    for word in vocabulary() {
        text.extend(std::iter::repeat_n(format!("x {word} {word}"), 50));
    }
    text.extend(std::iter::repeat_n("x ___ ___.".to_owned(), 50));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::load;

    #[test]
    fn training_twice_gives_the_same_bytes() {
        assert_eq!(json().expect("one"), json().expect("other"));
    }

    #[test]
    fn a_sentence_is_one_token_a_word_and_any_text_comes_back() {
        let tokenizer = load(&json().expect("json")).expect("load");
        assert!(tokenizer.get_vocab_size(true) < 2_600, "{}", tokenizer.get_vocab_size(true));
        let encoding = tokenizer.encode("She usually photographs anna's neighbours.", false).expect("encode");
        assert_eq!(encoding.get_tokens().len(), 7, "{:?}", encoding.get_tokens());
        let text = "Zoë ate 3 crêpes — twice.\n";
        let encoding = tokenizer.encode(text, false).expect("encode");
        assert_eq!(tokenizer.decode(encoding.get_ids(), true).expect("decode"), text);
    }

    #[test]
    fn role_tokens_have_the_ids_that_the_config_says() {
        let tokenizer = load(&json().expect("json")).expect("load");
        for (id, token) in SPECIAL.iter().enumerate() {
            assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
        }
        let encoding = tokenizer.encode(chat_prompt("She ___ home."), false).expect("encode");
        assert_eq!(encoding.get_ids()[..2], [BOS as u32, 4]);
        assert_eq!(encoding.get_ids().last(), Some(&5));
    }
}
