//! Answers that follow a JSON schema, a pattern or a grammar: before each token, which may come next.
//!
//! The work is `llguidance`'s; here it meets a base's own tokenizer, and limits. What a caller sends is compiled by its rules
//! with bounded effort, at the request's beginning and again at each token, so that no schema can hold up the device.

mod vocabulary;

use std::fmt;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use tailor_domain::ErrorCode;
use tailor_text::Tokenizer;

/// Longest schema, pattern or grammar in bytes.
const MAX_SOURCE_BYTES: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the base's tokenizer cannot be used to constrain answers: {0}")]
    Tokenizer(String),
    #[error("{what} has {size} bytes, the limit is {MAX_SOURCE_BYTES}")]
    TooLong { what: &'static str, size: usize },
    #[error("{what} cannot be followed: {problem}")]
    Grammar { what: &'static str, problem: String },
}

impl Error {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Tokenizer(_) => ErrorCode::FailedPrecondition,
            Self::TooLong { .. } | Self::Grammar { .. } => ErrorCode::InvalidArgument,
        }
    }
}

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// A JSON object, whatever is in it.
    JsonObject,
    JsonSchema(Value),
    /// The whole answer matches.
    Regex(String),
    /// A context-free grammar in llguidance's variant of Lark.
    Lark(String),
}

impl Format {
    fn what(&self) -> &'static str {
        match self {
            Self::JsonObject => "the JSON object",
            Self::JsonSchema(_) => "the JSON schema",
            Self::Regex(_) => "the pattern",
            Self::Lark(_) => "the grammar",
        }
    }

    fn grammar(&self) -> Result<TopLevelGrammar, Error> {
        let what = self.what();
        let within = |size: usize| match size {
            size if size > MAX_SOURCE_BYTES => Err(Error::TooLong { what, size }),
            _ => Ok(()),
        };
        Ok(match self {
            Self::JsonObject => TopLevelGrammar::from_json_schema(bounded(serde_json::json!({ "type": "object" }))),
            Self::JsonSchema(schema) => {
                within(schema.to_string().len())?;
                TopLevelGrammar::from_json_schema(bounded(schema.clone()))
            }
            Self::Regex(pattern) => {
                within(pattern.len())?;
                TopLevelGrammar::from_regex(pattern)
            }
            Self::Lark(grammar) => {
                within(grammar.len())?;
                TopLevelGrammar::from_lark(grammar.clone())
            }
        })
    }
}

/// Between JSON's tokens a model may go on with blanks for ever: some do.
fn bounded(mut schema: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        let blanks = serde_json::json!({ "whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,16}" });
        fields.entry("x-guidance").or_insert(blanks);
    }
    schema
}

/// What one tokenizer can be held to. Made once for each base.
pub struct Constraints {
    factory: ParserFactory,
}

impl Constraints {
    /// `vocabulary`: logits of the model, which may be more than the tokenizer has tokens; `eos`: what ends an answer.
    ///
    /// # Errors
    /// The tokenizer is of a kind whose tokens' bytes are not known, or the model has no end token.
    pub fn new(tokenizer: &Tokenizer, vocabulary: usize, eos: &[u32]) -> Result<Self, Error> {
        let environment: TokEnv = vocabulary::environment(tokenizer, vocabulary, eos)?;
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        // Its own log; ours says what is refused, and why.
        factory.quiet();
        Ok(Self { factory })
    }

    /// The beginning of one answer.
    ///
    /// # Errors
    /// The schema, pattern or grammar is too long, wrong, not supported, or takes too much work.
    pub fn begin(&self, format: &Format) -> Result<Follower, Error> {
        let parser = self.factory.create_parser(format.grammar()?);
        let mut matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(problem) => Err(Error::Grammar { what: format.what(), problem }),
            None => {
                // Found out now and not on the device.
                let first = matcher.compute_mask_or_eos();
                first.map_err(|error| Error::Grammar { what: format.what(), problem: error.to_string() })?;
                Ok(Follower { matcher })
            }
        }
    }
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraints")
    }
}

/// Follows one answer.
pub struct Follower {
    matcher: Matcher,
}

impl Follower {
    /// Sets the logits of tokens that may not come next to minus infinity.
    ///
    /// # Errors
    /// The next token takes too much work to find out.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        for (token, logit) in logits.iter_mut().enumerate() {
            if token >= allowed.len() || !allowed.get(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes the token that was chosen. False when nothing can follow it.
    ///
    /// # Errors
    /// The token was not allowed.
    pub fn accept(&mut self, token: u32) -> Result<bool, String> {
        self.matcher.consume_token(token).map_err(|error| error.to_string())?;
        Ok(!self.matcher.is_stopped())
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follower")
    }
}
