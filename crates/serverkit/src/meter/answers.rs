//! What callers see of serving, under OpenTelemetry's conventions for generative AI (semantic-conventions-genai,
//! `gen-ai-metrics.md`, status: development), with Tailor's own names beside them.
//!
//! Times run from the moment a request is understood, its wait in the queue included.

use std::sync::Arc;
use std::time::Instant;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use super::labels::{Labels, OTHER};

/// Bounds of the histograms, in seconds, as the conventions advise them.
const FIRST_TOKEN: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const EACH_TOKEN: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
const WHOLE: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// In tokens.
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

struct Instruments {
    first_token: Histogram<f64>,
    per_output_token: Histogram<f64>,
    between_tokens: Histogram<f64>,
    duration: Histogram<f64>,
    usage: Histogram<u64>,
    tokens: Counter<u64>,
    refused: Counter<u64>,
}

impl Instruments {
    fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, about: &'static str, bounds: &[f64]| {
            meter.f64_histogram(name).with_unit("s").with_description(about).with_boundaries(bounds.to_vec()).build()
        };
        let usage = meter.u64_histogram("gen_ai.client.token.usage").with_unit("{token}");
        Self {
            first_token: seconds(
                "gen_ai.server.time_to_first_token",
                "From a request to the first token of its answer.",
                &FIRST_TOKEN,
            ),
            per_output_token: seconds(
                "gen_ai.server.time_per_output_token",
                "Of each whole answer, the mean time for a token after the first.",
                &EACH_TOKEN,
            ),
            between_tokens: seconds(
                "tailor.gateway.time_between_tokens",
                "From each token of an answer to the next.",
                &EACH_TOKEN,
            ),
            duration: seconds("gen_ai.server.request.duration", "From a request to its end.", &WHOLE),
            usage: usage
                .with_description("Tokens of a request and of its answer.")
                .with_boundaries(TOKENS.to_vec())
                .build(),
            tokens: meter
                .u64_counter("tailor.gateway.tokens")
                .with_unit("{token}")
                .with_description("Tokens of prompts, of them those found in the cache, and of answers.")
                .build(),
            refused: meter
                .u64_counter("tailor.gateway.refused")
                .with_unit("{request}")
                .with_description("Requests that were turned away before any work was done.")
                .build(),
        }
    }
}

/// Of all answers of a process.
pub struct Answers {
    instruments: Arc<Instruments>,
    adapters: Labels,
}

/// What a request asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `chat`, `text_completion`, or `score` for given tokens.
    pub operation: &'static str,
    pub base: String,
    /// `name@version` and digest; absent for the base alone.
    pub adapter: Option<(String, String)>,
}

impl Answers {
    /// `max_adapters` of them are named one by one; what comes after counts as `other`.
    pub fn new(max_adapters: usize) -> Self {
        let instruments = Instruments::new(&opentelemetry::global::meter("tailor"));
        Self { instruments: Arc::new(instruments), adapters: Labels::new(max_adapters) }
    }

    /// The clock of one answer, begun now.
    pub fn begin(&self, asked: &Asked) -> AnswerMeter {
        AnswerMeter {
            instruments: Arc::clone(&self.instruments),
            attributes: self.attributes(asked),
            begun: Instant::now(),
            first: None,
            last: None,
            tokens: 0,
        }
    }

    /// A request that no work was done for; `reason` is an error code's name.
    pub fn refused(&self, asked: &Asked, reason: &'static str) {
        let mut attributes = self.attributes(asked);
        attributes.push(KeyValue::new("error.type", reason));
        self.instruments.refused.add(1, &attributes);
    }

    fn attributes(&self, asked: &Asked) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", asked.operation),
            KeyValue::new("gen_ai.provider.name", "tailor"),
            KeyValue::new("gen_ai.request.model", asked.base.clone()),
        ];
        if let Some((name, digest)) = &asked.adapter {
            let named = self.adapters.admit(digest);
            let label = |name: &String| if named { name.clone() } else { OTHER.to_owned() };
            attributes.push(KeyValue::new("tailor.adapter", label(name)));
            attributes.push(KeyValue::new("tailor.adapter.digest", label(digest)));
        }
        attributes
    }
}

/// The clock of one answer.
pub struct AnswerMeter {
    instruments: Arc<Instruments>,
    attributes: Vec<KeyValue>,
    begun: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u64,
}

impl AnswerMeter {
    /// A token has come.
    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last {
            None => {
                self.first = Some(now);
                self.instruments.first_token.record((now - self.begun).as_secs_f64(), &self.attributes);
            }
            Some(last) => self.instruments.between_tokens.record((now - last).as_secs_f64(), &self.attributes),
        }
        self.last = Some(now);
        self.tokens += 1;
    }

    /// The answer's end, however it came. `error`: an error code's name, or `cancelled`; a whole answer has none.
    pub fn end(&self, prompt_tokens: u64, cached_tokens: u64, output_tokens: u64, error: Option<&'static str>) {
        let kinds = [("input", prompt_tokens), ("cached", cached_tokens), ("output", output_tokens)];
        for (kind, count) in kinds {
            let mut attributes = self.attributes.clone();
            attributes.push(KeyValue::new("gen_ai.token.type", kind));
            self.instruments.tokens.add(count, &attributes);
            // The conventions know two kinds; what was cached is part of the input.
            if kind != "cached" {
                self.instruments.usage.record(count, &attributes);
            }
        }
        let mut attributes = self.attributes.clone();
        attributes.extend(error.map(|error| KeyValue::new("error.type", error)));
        self.instruments.duration.record(self.begun.elapsed().as_secs_f64(), &attributes);
        if let (None, Some(first), Some(last), 2..) = (error, self.first, self.last, self.tokens) {
            let mean = (last - first).as_secs_f64() / (self.tokens - 1) as f64;
            self.instruments.per_output_token.record(mean, &self.attributes);
        }
    }
}
