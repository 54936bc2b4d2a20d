//! A request's way through the engine as spans under the request's own: its wait, each step that reads its prompt, its answer.
//!
//! Steps of an answer are counted, not told one by one: there is one for each token.

use tracing::Span;

/// Where a sequence is on its way. The span it is in ends when the next begins, or when the sequence does.
pub struct Trace {
    request: Span,
    /// Whether tokens are made after the prompt; scores are read off it.
    answers: bool,
    phase: Phase,
}

enum Phase {
    /// Accepted, not begun.
    Queued {
        _span: Span,
    },
    /// Its prompt is being read, a piece in each step.
    Reading {
        prompt: Span,
        step: Span,
        begun: bool,
    },
    Answering {
        span: Span,
        steps: u64,
    },
    Over,
}

impl Trace {
    /// Of a request that has just been accepted; `request` may be a disabled span.
    pub fn new(request: Span, answers: bool) -> Self {
        // Without a parent a span would begin a trace of its own.
        let waits =
            if request.is_disabled() { Span::none() } else { tracing::info_span!(parent: &request, "engine.queue") };
        Self { request, answers, phase: Phase::Queued { _span: waits } }
    }

    /// It takes part from the next step on.
    pub fn admitted(&mut self, prompt_tokens: usize) {
        if self.request.is_disabled() {
            return;
        }
        let prompt = tracing::info_span!(
            parent: &self.request,
            "engine.prefill",
            tailor.prompt_tokens = prompt_tokens,
            tailor.cached_tokens = tracing::field::Empty,
        );
        let step = step(&prompt);
        self.phase = Phase::Reading { prompt, step, begun: false };
    }

    /// A step that took `tokens` of it is over; `cached` is what was found in the cache, `reads_on` whether more of the prompt
    /// is to come.
    pub fn stepped(&mut self, tokens: usize, cached: usize, reads_on: bool) {
        match &mut self.phase {
            Phase::Queued { .. } | Phase::Over => {}
            Phase::Reading { prompt, step: current, begun } => {
                current.record("tailor.tokens", tokens);
                if !*begun {
                    prompt.record("tailor.cached_tokens", cached);
                    *begun = true;
                }
                if reads_on {
                    *current = step(prompt);
                } else if !self.answers {
                    self.phase = Phase::Over;
                } else {
                    let span = tracing::info_span!(
                        parent: &self.request, "engine.decode", tailor.steps = tracing::field::Empty
                    );
                    self.phase = Phase::Answering { span, steps: 0 };
                }
            }
            Phase::Answering { steps, .. } => *steps += 1,
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Phase::Answering { span, steps } = &self.phase {
            span.record("tailor.steps", *steps);
        }
    }
}

fn step(prompt: &Span) -> Span {
    tracing::info_span!(parent: prompt, "engine.step", tailor.tokens = tracing::field::Empty)
}
