//! What a template is given: messages, tools, and whatever else a family's template reads.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The names under which a message's reasoning goes about; templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One turn of a conversation: an object that has a `role` and mostly a `content`, which is a text or a list of parts; and
/// `tool_calls`, `reasoning_content` or what else the template knows. The order of the fields is kept: `tojson` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<Value>) -> Self {
        let role = Value::String(role.into());
        Self([("role".to_owned(), role), ("content".to_owned(), content.into())].into_iter().collect())
    }

    pub(crate) fn from_fields(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// Empty where there is none.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The content, if it is a text and not a list of parts.
    pub fn text(&self) -> &str {
        self.0.get("content").and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn to_json(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    /// The same with one more field, e.g. `tool_calls`.
    #[must_use]
    pub fn with(mut self, field: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.insert(field.into(), value.into());
        self
    }

    /// As `transformers` hands it to the template: fields that are null are left out, and the reasoning is there under the
    /// name that templates read and the one that gpt-oss's reads.
    pub(super) fn prepared(&self) -> Map<String, Value> {
        let mut fields: Map<String, Value> = self
            .0
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() else { return fields };
        let mut aliased = Map::new();
        aliased.insert("thinking".into(), fields.get("thinking").unwrap_or(&reasoning).clone());
        aliased.append(&mut fields);
        aliased.insert("reasoning_content".into(), reasoning);
        aliased
    }
}

/// What a conversation is rendered with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatOptions {
    /// The text ends where the assistant's answer starts.
    pub add_generation_prompt: bool,
    /// JSON schemas of functions; a template may tell none from an empty list.
    pub tools: Option<Vec<Value>>,
    pub documents: Option<Vec<Value>>,
    /// What else the template reads, e.g. `enable_thinking`; a special token of this name is overruled.
    pub variables: Map<String, Value>,
}
