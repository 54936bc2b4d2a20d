//! A row as a model learns from it: token ids, and which of them count in the loss.
//!
//! The prompt's ids in training are exactly those that serving makes of the same input ([`ExampleBuilder::prompt`]), so
//! what was learnt is what is asked for. Only the target and the end token count in the loss.
//!
//! - Decoder with a chat template: the prompt is the user's message, the target the assistant's.
//! - Decoder without: begin token, prompt, target, end token.
//! - Encoder-decoder: the encoder reads the prompt and the end token; the labels are the target and the end token.

use tailor_domain::Family;

use crate::chat::Message;
use crate::error::{Error, Refusal, Result};
use crate::template::PromptTemplate;
use crate::tokenizer::Tokenizer;

/// One row, tokenised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Example {
    /// `in_loss[i]` says whether predicting `ids[i]` from what stands before it counts.
    Decoder { ids: Vec<u32>, in_loss: Vec<bool> },
    /// All labels count.
    EncoderDecoder { encoder: Vec<u32>, labels: Vec<u32> },
}

impl Example {
    /// Tokens of prompt and target together.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Decoder { ids, .. } => ids.len(),
            Self::EncoderDecoder { encoder, labels } => encoder.len() + labels.len(),
        }
    }

    /// Tokens that count in the loss.
    pub fn tokens_in_loss(&self) -> usize {
        match self {
            Self::Decoder { in_loss, .. } => in_loss.iter().filter(|counts| **counts).count(),
            Self::EncoderDecoder { labels, .. } => labels.len(),
        }
    }
}

/// What a model is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text that was tokenised: the template applied, and the chat template around it.
    pub text: String,
    /// For an encoder-decoder the encoder's input, else the beginning of the stream.
    pub ids: Vec<u32>,
}

/// Makes prompts and examples for one base and one template. Serving and training use the same one.
#[derive(Debug, Clone)]
pub struct ExampleBuilder {
    tokenizer: Tokenizer,
    template: PromptTemplate,
    family: Family,
    eos: u32,
}

impl ExampleBuilder {
    /// # Errors
    /// The base's tokenizer has no end token.
    pub fn new(tokenizer: Tokenizer, template: PromptTemplate, family: Family) -> Result<Self> {
        let eos = tokenizer.required_eos()?;
        Ok(Self { tokenizer, template, family, eos })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// # Errors
    /// The chat template refuses, or the tokenizer fails.
    pub fn prompt(&self, input: &str) -> Result<Prompt> {
        let text = self.template.render(input);
        match (self.family, self.tokenizer.chat_template()) {
            (Family::EncoderDecoder, _) => {
                let mut ids = self.tokenizer.encode(&text)?;
                ids.push(self.eos);
                Ok(Prompt { text, ids })
            }
            (Family::Decoder, Some(chat)) => {
                let text = chat.render(&[Message::new("user", text)], true)?;
                // The template writes the special tokens itself.
                Ok(Prompt { ids: self.tokenizer.encode(&text)?, text })
            }
            (Family::Decoder, None) => {
                let mut ids = self.tokenizer.prefix().to_vec();
                ids.extend(self.tokenizer.encode(&text)?);
                Ok(Prompt { text, ids })
            }
        }
    }

    /// # Errors
    /// `Error::Row` when the row is longer than `max_tokens` or leaves nothing to learn; otherwise the template or the
    /// tokenizer is at fault, and every row will fail.
    pub fn example(&self, input: &str, target: &str, max_tokens: usize) -> Result<Example> {
        let prompt = self.prompt(input)?;
        let answer = self.answer(input, &prompt, target)?;
        let tokens = prompt.ids.len() + answer.len();
        if tokens > max_tokens {
            return Err(Error::Row(Refusal::TooLong { tokens, limit: max_tokens }));
        }
        // The end token alone would teach the model to say nothing.
        if answer.len() < 2 || prompt.ids.is_empty() {
            return Err(Error::Row(Refusal::NothingToLearn));
        }
        Ok(match self.family {
            Family::EncoderDecoder => Example::EncoderDecoder { encoder: prompt.ids, labels: answer },
            Family::Decoder => {
                let mut in_loss = vec![false; prompt.ids.len()];
                in_loss.resize(tokens, true);
                let ids = prompt.ids.into_iter().chain(answer).collect();
                Example::Decoder { ids, in_loss }
            }
        })
    }

    /// The ids that follow the prompt: the target, then one end token, and nothing after it.
    fn answer(&self, input: &str, prompt: &Prompt, target: &str) -> Result<Vec<u32>> {
        let mut answer = match (self.family, self.tokenizer.chat_template()) {
            (Family::EncoderDecoder, _) => self.tokenizer.encode(target)?,
            (Family::Decoder, None) => self.continuation(prompt, target, self.tokenizer.prefix().len())?,
            (Family::Decoder, Some(chat)) => {
                let messages = [Message::new("user", self.template.render(input)), Message::new("assistant", target)];
                let whole = chat.render(&messages, false)?;
                let rest = whole.strip_prefix(prompt.text.as_str()).ok_or_else(|| Error::ChatTemplate {
                    problem: "the conversation does not start with the generation prompt, so what the model learns \
                              would not be what it is asked; use a template whose answer follows the prompt"
                        .into(),
                })?;
                self.continuation(prompt, rest, 0)?
            }
        };
        // Generation stops at the first end token, so nothing after it can ever be asked for: neither the line end that
        // some templates add, nor what a row's own text may hide behind one.
        if let Some(end) = answer.iter().position(|id| *id == self.eos) {
            answer.truncate(end);
        }
        answer.push(self.eos);
        Ok(answer)
    }

    /// Ids of `rest` as they follow the prompt: as cut by the tokenizer in the whole text where that leaves the prompt's
    /// ids as they are, else by themselves.
    fn continuation(&self, prompt: &Prompt, rest: &str, prefix: usize) -> Result<Vec<u32>> {
        let prompt_ids = prompt.ids.get(prefix..).unwrap_or_default();
        let whole = self.tokenizer.encode(&format!("{}{rest}", prompt.text))?;
        match whole.strip_prefix(prompt_ids) {
            Some(answer) if !prompt_ids.is_empty() => Ok(answer.to_vec()),
            _ => self.tokenizer.encode(rest),
        }
    }
}

#[cfg(test)]
mod tests;
