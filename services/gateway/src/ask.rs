//! What is asked of a model, whichever protocol brought it.

use std::time::Instant;

use serde_json::Value;
use tailor_constrain::Format;
use tailor_domain::{ErrorCode, Invalid};
use tailor_engine::Sampling;
use tailor_pb::inference as pb;
use tailor_text::{ChatOptions, ExampleBuilder, Message, PromptTemplate};

use crate::error::{Error, Result};
use crate::models::Model;
use crate::stop::{MAX_STOP_BYTES, MAX_STOPS};

/// Longest input in bytes, in all places of its template, checked before it is rendered and tokenised.
const MAX_INPUT_BYTES: usize = 1 << 20;

#[derive(Debug, Clone)]
pub struct Ask {
    pub prompt: Prompt,
    pub sampling: Sampling,
    pub max_new_tokens: MaxNew,
    pub stop: Vec<String>,
    pub top_logprobs: Option<u8>,
    pub format: Option<Format>,
    /// Whose request it is; empty is everybody who does not say.
    pub tenant: String,
    pub deadline: Option<Instant>,
}

#[derive(Debug, Clone)]
pub enum Prompt {
    /// The whole prompt.
    Raw(String),
    Ids(Vec<u32>),
    /// What a user typed. A template overrides the adapter's.
    Input {
        text: String,
        template: String,
    },
    Messages {
        messages: Vec<Message>,
        tools: Option<Vec<Value>>,
        template: String,
    },
}

#[derive(Debug, Clone, Copy)]
pub enum MaxNew {
    /// Refused where the context has no room for them.
    Exactly(u32),
    /// Or what the context has room for, if that is less.
    UpTo(u32),
}

impl Ask {
    /// # Errors
    /// A limit that the engine does not check: stop strings.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.stop.len() > MAX_STOPS {
            return Err(Invalid::new("stop", format!("{} texts, the limit is {MAX_STOPS}", self.stop.len())));
        }
        match self.stop.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            None => Ok(()),
            Some(stop) => {
                let problem = format!("a text of {} bytes is outside 1 to {MAX_STOP_BYTES}", stop.len());
                Err(Invalid::new("stop", problem))
            }
        }
    }
}

impl Prompt {
    /// The ids as training rendered them: the adapter's template, then the base's chat template where it has one.
    pub fn ids(&self, model: &Model) -> Result<Vec<u32>> {
        match self {
            Self::Raw(text) => {
                check_size("input", text.len())?;
                Ok(model.base.tokenizer.encode_with_special(text)?)
            }
            Self::Ids(ids) => {
                check_size("input", size_of_val(&ids[..]))?;
                Ok(ids.clone())
            }
            Self::Input { text, template } => {
                let template = parse(model, template)?;
                check_size("input", template.rendered_bytes(text.len()))?;
                Ok(builder(model, template)?.prompt(text)?.ids)
            }
            Self::Messages { messages, tools, template } => {
                let template = parse(model, template)?;
                let size = |message: &Message| match message.role() {
                    "user" => template.rendered_bytes(message.text().len()),
                    _ => message.text().len(),
                };
                check_size("input", messages.iter().map(size).fold(0, usize::saturating_add))?;
                let options = ChatOptions { tools: tools.clone(), ..ChatOptions::default() };
                let prompt = builder(model, template)?.conversation(messages, &options);
                Ok(prompt.map_err(refused_chat)?.ids)
            }
        }
    }
}

/// # Errors
/// So many bytes are not tokenised.
pub fn check_size(field: &str, size: usize) -> Result<(), Invalid> {
    if size > MAX_INPUT_BYTES {
        return Err(Invalid::new(field, format!("{size} bytes; the limit is {MAX_INPUT_BYTES}")));
    }
    Ok(())
}

/// A conversation comes from the caller: what its template does not take is the caller's to change.
fn refused_chat(error: tailor_text::Error) -> Error {
    match error.code() {
        ErrorCode::Internal | ErrorCode::FailedPrecondition => Invalid::new("messages", error.to_string()).into(),
        _ => error.into(),
    }
}

/// The template that is given, or the adapter's.
fn parse(model: &Model, template: &str) -> Result<PromptTemplate> {
    let template = match (template, &model.adapter) {
        ("", Some(version)) => version.prompt_template.as_str(),
        (given, _) => given,
    };
    Ok(PromptTemplate::parse(template, None)?)
}

fn builder(model: &Model, template: PromptTemplate) -> Result<ExampleBuilder> {
    Ok(ExampleBuilder::new(model.base.tokenizer.clone(), template, model.base.manifest.family)?)
}

/// A schema as it is sent.
pub fn json_schema(schema: &str) -> Result<Format, Invalid> {
    let schema = serde_json::from_str(schema).map_err(|error| Invalid::new("json_schema", error.to_string()))?;
    Ok(Format::JsonSchema(schema))
}

impl TryFrom<pb::GenerateRequest> for Ask {
    type Error = Error;

    fn try_from(request: pb::GenerateRequest) -> Result<Self> {
        let prompt = if request.raw {
            Prompt::Raw(request.input)
        } else if request.messages.is_empty() {
            Prompt::Input { text: request.input, template: request.prompt_template }
        } else {
            let messages = request.messages.into_iter().map(|turn| Message::new(turn.role, turn.content)).collect();
            Prompt::Messages { messages, tools: None, template: request.prompt_template }
        };
        let format = match request.format {
            None => None,
            Some(pb::generate_request::Format::Regex(pattern)) => Some(Format::Regex(pattern)),
            Some(pb::generate_request::Format::Lark(grammar)) => Some(Format::Lark(grammar)),
            Some(pb::generate_request::Format::JsonSchema(schema)) => Some(json_schema(&schema)?),
        };
        let top_logprobs = request.top_logprobs.map(|top| u8::try_from(top).unwrap_or(u8::MAX));
        let ask = Self {
            prompt,
            sampling: Sampling {
                temperature: request.temperature,
                top_p: request.top_p,
                top_k: request.top_k,
                min_p: request.min_p,
                repetition_penalty: request.repetition_penalty,
                presence_penalty: request.presence_penalty,
                frequency_penalty: request.frequency_penalty,
                logit_bias: request.logit_bias.into_iter().collect(),
                seed: request.seed,
            },
            max_new_tokens: MaxNew::Exactly(request.max_new_tokens),
            stop: request.stop,
            top_logprobs,
            format,
            tenant: String::new(),
            deadline: None,
        };
        ask.check()?;
        Ok(ask)
    }
}
