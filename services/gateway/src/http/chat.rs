//! `/v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tailor_text::Message;

use super::error::ApiError;
use super::extract::Body;
use super::shape::{Choosing, answered, begin, complete, fingerprint, usage};
use super::stream::{Chunks, Ending, events};
use super::{Http, models, new_id, now};
use crate::answer::Piece;
use crate::ask::{Ask, MaxNew, Prompt};
use crate::caller::Caller;
use crate::rollout::Choice;
use crate::said::{SaidToken, Token};

/// Tokens made when the caller does not say, where the context has room for them.
const DEFAULT_NEW_TOKENS: u32 = 1024;

#[derive(Debug, Deserialize)]
pub struct ChatRequest {
    model: String,
    messages: Vec<Map<String, Value>>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    logprobs: Option<bool>,
    top_logprobs: Option<u8>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    /// What tools were called before.
    #[serde(default)]
    functions: Value,
    #[serde(default)]
    function_call: Value,
    /// Whom the answer is for: keeps its side of a rollout.
    user: Option<String>,
    #[serde(flatten)]
    choosing: Choosing,
}

pub async fn create(
    State(http): State<Http>,
    headers: HeaderMap,
    Body(request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    ApiError::unserved("functions", &request.functions, "give them as tools")?;
    ApiError::unserved("function_call", &request.function_call, "use tools and tool_choice")?;
    let caller = Caller::of_headers(&headers);
    let ask = Ask {
        prompt: Prompt::Messages {
            messages: request.messages.iter().cloned().map(message).collect::<Result<_, _>>()?,
            tools: tools(&request)?,
            template: String::new(),
        },
        sampling: request.choosing.sampling()?,
        max_new_tokens: match request.max_completion_tokens.or(request.max_tokens) {
            Some(0) => return Err(ApiError::param("max_tokens", "0 tokens are asked for; ask for at least 1")),
            Some(count) => MaxNew::Exactly(count),
            None => MaxNew::UpTo(DEFAULT_NEW_TOKENS),
        },
        stop: request.choosing.stop(),
        top_logprobs: request.logprobs.unwrap_or(false).then(|| request.top_logprobs.unwrap_or(0)),
        format: request.choosing.format()?,
        tenant: caller.tenant.clone(),
        deadline: caller.deadline,
    };
    let count = request.choosing.choices()?;
    let user = request.user.clone().unwrap_or_default();
    let caller = tailor_domain::rollout::Caller::try_new(caller.tenant, String::new(), user)?;
    let mut choice = models::find(&http, &request.model, &caller).await?;
    let asks = std::slice::from_ref(&ask);
    let head = |choice: &Choice| Head {
        id: new_id("chatcmpl"),
        created: now(),
        model: request.model.clone(),
        fingerprint: fingerprint(&choice.model),
        logprobs: ask.top_logprobs.is_some(),
    };
    if request.choosing.stream.unwrap_or(false) {
        let begun = begin(&http, &mut choice, asks, count).await?;
        let head = head(&choice);
        let include_usage = request.choosing.include_usage();
        return Ok(events(begun, head, Ending { include_usage, count, turn: choice.turn, ask }));
    }
    let mut answers = complete(&http, &mut choice, asks, count).await?;
    let head = head(&choice);
    let choices = answers.iter().enumerate().map(|(index, (answer, whole))| {
        let message = json!({ "role": "assistant", "content": whole.text, "refusal": null });
        json!({
            "index": index, "message": message, "logprobs": head.logprobs(whole), "finish_reason": answer.finish_reason,
        })
    });
    let mut response = head.object("chat.completion", choices.collect());
    response["usage"] = usage(answers.iter().map(|(answer, _)| answer.into()), count);
    answered(choice.turn, ask, std::mem::take(&mut answers[0].1.text));
    Ok(Json(response).into_response())
}

/// A turn as the template is given it: parts of text are joined; what is no text is refused.
fn message(mut fields: Map<String, Value>) -> Result<Message, ApiError> {
    if !fields.get("role").is_some_and(Value::is_string) {
        return Err(ApiError::param("messages", "a message has no role"));
    }
    if let Some(Value::Array(parts)) = fields.get("content") {
        let text = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(text)) => Ok(text.to_owned()),
            (kind, _) => {
                let kind = kind.unwrap_or("(none)");
                Err(ApiError::param("messages", format!("a part of type {kind} is no text; text is all that is read")))
            }
        };
        let joined: String = parts.iter().map(text).collect::<Result<_, _>>()?;
        fields.insert("content".into(), joined.into());
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| ApiError::param("messages", error.to_string()))
}

/// Tools go to the chat template; what the model says of them stays text.
fn tools(request: &ChatRequest) -> Result<Option<Vec<Value>>, ApiError> {
    match &request.tool_choice {
        None => {}
        Some(Value::String(choice)) if choice == "auto" => {}
        Some(Value::String(choice)) if choice == "none" => return Ok(None),
        Some(_) => {
            return Err(ApiError::param("tool_choice", "a model cannot be made to call a tool; use auto or none"));
        }
    }
    Ok(request.tools.clone().filter(|tools| !tools.is_empty()))
}

/// What every chunk of one response repeats.
#[derive(Clone)]
struct Head {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    logprobs: bool,
}

impl Head {
    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices,
        })
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish_reason: Option<&str>) -> Value {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason });
        self.object("chat.completion.chunk", vec![choice])
    }

    fn logprobs(&self, piece: &Piece) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        json!({ "content": piece.tokens.iter().map(logprob).collect::<Vec<_>>(), "refusal": null })
    }
}

impl Chunks for Head {
    fn begin(&self, index: usize) -> Option<Value> {
        Some(self.chunk(index, json!({ "role": "assistant", "content": "" }), Value::Null, None))
    }

    fn piece(&self, index: usize, piece: &Piece) -> Value {
        self.chunk(index, json!({ "content": piece.text }), self.logprobs(piece), None)
    }

    fn end(&self, index: usize, finish_reason: &str) -> Value {
        self.chunk(index, json!({}), Value::Null, Some(finish_reason))
    }

    fn usage(&self, usage: Value) -> Value {
        let mut chunk = self.object("chat.completion.chunk", Vec::new());
        chunk["usage"] = usage;
        chunk
    }
}

fn logprob(said: &SaidToken) -> Value {
    let one = |token: &Token, logprob: f32| json!({ "token": token.text(), "logprob": logprob, "bytes": token.bytes });
    let mut shown = one(&said.token, said.logprob);
    shown["top_logprobs"] = said.top.iter().map(|(token, logprob)| one(token, *logprob)).collect();
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn parts_of_text_are_joined_and_pictures_are_refused() {
        let parts = json!([{ "type": "text", "text": "one " }, { "type": "text", "text": "two" }]);
        let joined = message(fields(json!({ "role": "user", "content": parts }))).expect("text");
        assert_eq!((joined.role(), joined.text()), ("user", "one two"));
        let picture = json!([{ "type": "image_url", "image_url": { "url": "x" } }]);
        let error = message(fields(json!({ "role": "user", "content": picture }))).expect_err("refused");
        assert!(error.body()["error"]["message"].as_str().expect("words").contains("image_url"));
        assert!(message(fields(json!({ "content": "who says so?" }))).is_err());
    }
}
