//! From a row's texts to ids, the same way for training and for serving.

use std::borrow::Cow;

use tailor_domain::Family;
use tailor_domain::spec::{LossOn, Objective};

use super::{Example, Preference, mask};
use crate::chat::{ChatOptions, ChatTemplate, Message};
use crate::error::{Error, Refusal, Result};
use crate::rows::RowContent;
use crate::template::PromptTemplate;
use crate::tokenizer::Tokenizer;

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

/// What is asked, before it is tokenised.
struct Question<'a> {
    /// The prompt template applied; None for a conversation.
    text: Option<String>,
    /// As the chat template is given them; empty where there is none.
    messages: Cow<'a, [Message]>,
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
        self.ask(&self.question(input))
    }

    /// A conversation that the assistant is to go on with. Each of the user's turns goes through the prompt template, as
    /// the model was taught to be asked; a single turn is asked as [`Self::prompt`] does.
    ///
    /// # Errors
    /// There is no chat template and it is no single turn, the template refuses, or the tokenizer fails.
    pub fn conversation(&self, messages: &[Message], options: &ChatOptions) -> Result<Prompt> {
        let is_text = |message: &Message| message.role() == "user" && !message.text().is_empty();
        if let [only] = messages
            && is_text(only)
            && *options == ChatOptions::default()
        {
            return self.prompt(only.text());
        }
        let chat = self.tokenizer.chat_template().filter(|_| self.family == Family::Decoder);
        let Some(chat) = chat else {
            let problem = "there is none, and a conversation is rendered by it; send a single turn of the user";
            return Err(Error::ChatTemplate { problem: problem.into() });
        };
        let asked = messages.iter().map(|message| match is_text(message) {
            true => message.clone().with("content", self.template.render(message.text())),
            false => message.clone(),
        });
        let asked: Vec<Message> = asked.collect();
        let options = ChatOptions { add_generation_prompt: true, ..options.clone() };
        let text = chat.render_with(&asked, &options)?;
        let ids = self.tokenizer.encode(&text)?;
        Ok(Prompt { text, ids })
    }

    /// What a row asks, without its answer.
    ///
    /// # Errors
    /// As `prompt`; `Error::Row` when the template refuses this conversation, `Error::ChatTemplate` when there is none.
    pub fn row_prompt(&self, row: &RowContent) -> Result<Prompt> {
        self.ask(&self.row_question(row)?)
    }

    /// As [`Self::row_example`] of a row of input and target, whose answer counts.
    ///
    /// # Errors
    /// As there.
    pub fn example(&self, input: &str, target: &str, max_tokens: usize) -> Result<Example> {
        let question = self.question(input);
        let prompt = self.ask(&question)?;
        let answer = self.answer(&question, &prompt, &Message::new("assistant", target))?;
        self.checked(&prompt, &answer, max_tokens)?;
        Ok(Example::answered(self.family, prompt.ids, answer))
    }

    /// A row and what counts of it. Of a preference the chosen answer is learnt.
    ///
    /// # Errors
    /// `Error::Row` when the row is longer than `max_tokens`, leaves nothing to learn or is refused by the template;
    /// otherwise the template, the tokenizer or `loss_on` is at fault, and every row will fail.
    pub fn row_example(&self, row: &RowContent, loss_on: LossOn, max_tokens: usize) -> Result<Example> {
        row.kind()
            .check(Objective::Sft, loss_on, self.family)
            .map_err(|error| Error::Option { field: "train.loss_on", problem: error.problem })?;
        let question = self.row_question(row)?;
        let prompt = self.ask(&question)?;
        let answer = self.answer(&question, &prompt, &row.answer_message())?;
        self.checked(&prompt, &answer, max_tokens)?;
        let before = match (loss_on, self.chat_of(&question)) {
            (LossOn::Assistant, Some(chat)) => {
                mask::assistant(chat, &self.tokenizer, &question.messages, &prompt, self.eos)?
            }
            (LossOn::Assistant, None) | (LossOn::Completion, _) => vec![false; prompt.ids.len()],
            (LossOn::Everything, _) => vec![true; prompt.ids.len()],
        };
        let mut example = Example::answered(self.family, prompt.ids, answer);
        if let Example::Decoder { in_loss, .. } = &mut example {
            for (counts, says) in in_loss.iter_mut().zip(before).skip(1) {
                *counts = says;
            }
        }
        Ok(example)
    }

    /// Both answers to a row's prompt. The limit holds for each of the two.
    ///
    /// # Errors
    /// As `row_example`; the row has no two answers.
    pub fn preference(&self, row: &RowContent, max_tokens: usize) -> Result<Preference> {
        let (RowContent::Preference { chosen, rejected, .. } | RowContent::PreferredTurn { chosen, rejected, .. }) =
            row
        else {
            let problem = format!("dpo compares two answers, and the row is of kind {}", row.kind());
            return Err(Error::Option { field: "train.objective", problem });
        };
        let question = self.row_question(row)?;
        let prompt = self.ask(&question)?;
        let answer = |text: &String| self.answer(&question, &prompt, &Message::new("assistant", text.as_str()));
        let (chosen, rejected) = (answer(chosen)?, answer(rejected)?);
        let longer = if chosen.len() < rejected.len() { &rejected } else { &chosen };
        self.checked(&prompt, longer, max_tokens)?;
        for answer in [&chosen, &rejected] {
            self.checked(&prompt, answer, max_tokens)?;
        }
        if chosen == rejected {
            return Err(Error::Row(Refusal::SameAnswer));
        }
        let example = |answer| Example::answered(self.family, prompt.ids.clone(), answer);
        Ok(Preference { chosen: example(chosen), rejected: example(rejected) })
    }

    fn checked(&self, prompt: &Prompt, answer: &[u32], max_tokens: usize) -> Result<()> {
        let tokens = prompt.ids.len() + answer.len();
        if tokens > max_tokens {
            return Err(Error::Row(Refusal::TooLong { tokens, limit: max_tokens }));
        }
        // The end token alone would teach the model to say nothing.
        if answer.len() < 2 || prompt.ids.is_empty() {
            return Err(Error::Row(Refusal::NothingToLearn));
        }
        Ok(())
    }

    fn question(&self, input: &str) -> Question<'static> {
        let text = self.template.render(input);
        let messages = match (self.family, self.tokenizer.chat_template()) {
            (Family::Decoder, Some(_)) => vec![Message::new("user", text.as_str())],
            (Family::Decoder, None) | (Family::EncoderDecoder, _) => Vec::new(),
        };
        Question { text: Some(text), messages: Cow::Owned(messages) }
    }

    fn row_question<'a>(&self, row: &'a RowContent) -> Result<Question<'a>> {
        match row {
            RowContent::InputTarget { input, .. } | RowContent::Preference { prompt: input, .. } => {
                Ok(self.question(input))
            }
            RowContent::Conversation { .. } | RowContent::PreferredTurn { .. } => {
                if self.tokenizer.chat_template().is_none() {
                    let problem = "there is none, and conversations are rendered by it; take a base that has one, or upload \
                                   rows of single questions (input and target, or a prompt and two answers)";
                    return Err(Error::ChatTemplate { problem: problem.into() });
                }
                Ok(Question { text: None, messages: Cow::Borrowed(row.turns_before().unwrap_or_default()) })
            }
        }
    }

    /// The template, where it renders this question.
    fn chat_of(&self, question: &Question<'_>) -> Option<&ChatTemplate> {
        self.tokenizer.chat_template().filter(|_| !question.messages.is_empty())
    }

    fn ask(&self, question: &Question<'_>) -> Result<Prompt> {
        let chat = self.chat_of(question);
        let text = match (chat, &question.text) {
            (Some(chat), _) => question.render(chat, &question.messages, true)?,
            (None, text) => text.clone().unwrap_or_default(),
        };
        // A chat template writes the special tokens itself.
        let mut ids = match (self.family, chat) {
            (Family::Decoder, None) => self.tokenizer.prefix().to_vec(),
            (Family::Decoder, Some(_)) | (Family::EncoderDecoder, _) => Vec::new(),
        };
        ids.extend(self.tokenizer.encode(&text)?);
        if self.family == Family::EncoderDecoder {
            ids.push(self.eos);
        }
        Ok(Prompt { text, ids })
    }

    /// The ids that follow the prompt: the answer, then one end token, and nothing after it.
    fn answer(&self, question: &Question<'_>, prompt: &Prompt, answer: &Message) -> Result<Vec<u32>> {
        let mut ids = match (self.family, self.chat_of(question)) {
            (Family::EncoderDecoder, _) => self.tokenizer.encode(answer.text())?,
            (Family::Decoder, None) => self.continuation(prompt, answer.text(), self.tokenizer.prefix().len())?,
            (Family::Decoder, Some(chat)) => {
                let messages = [&question.messages[..], std::slice::from_ref(answer)].concat();
                let whole = question.render(chat, &messages, false)?;
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
        if let Some(end) = ids.iter().position(|id| *id == self.eos) {
            ids.truncate(end);
        }
        ids.push(self.eos);
        Ok(ids)
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

impl Question<'_> {
    /// A template that refuses one conversation may take the next; what it makes of one message it makes of all.
    fn render(&self, chat: &ChatTemplate, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let rendered = chat.render(messages, add_generation_prompt);
        if self.text.is_some() { rendered } else { rendered.map_err(mask::refused) }
    }
}
