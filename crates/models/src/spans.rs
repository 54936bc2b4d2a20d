//! Attention in a flat batch: the new tokens of many sequences stand one after another as rows of one token each, so
//! that every projection is one product over exactly the tokens there are, and only attention knows where a sequence
//! begins and ends.
//!
//! Keys and values lie in pages, or, for an encoder, in the batch itself. Each sequence is attended to alone: what it
//! gets does not depend on what else is in the batch, and nothing is padded.

use tch::{Device, Tensor};

use crate::attention::{Mask, attend, causal_mask};

/// Rows of a flat batch whose embeddings are given and not looked up: virtual tokens (prompt tuning).
pub(crate) struct GivenRows(pub Vec<(i64, Tensor)>); // the first row, [n, D]

impl GivenRows {
    /// `x` [N, 1, D], changed in place
    pub fn put_into(&self, x: Tensor) -> Tensor {
        for (first, rows) in &self.0 {
            x.narrow(0, *first, rows.size()[0]).copy_(&rows.unsqueeze(1));
        }
        x
    }
}

/// The rows of one sequence within a flat batch, and its keys.
pub(crate) struct Span {
    /// First row.
    pub start: i64,
    /// Rows: the new tokens.
    pub count: i64,
    /// Places of all its keys in the pages; None where the keys are the rows themselves.
    pub slots: Option<Tensor>, // [S] i64
    /// Keys before the new ones.
    pub past: i64,
}

impl Span {
    pub fn keys(&self) -> i64 {
        self.past + self.count
    }
}

/// What the queries of one span see.
pub(crate) struct SpanMask {
    /// Keys before this one are seen by none of the queries.
    pub first: i64,
    pub mask: Mask,
}

impl SpanMask {
    /// Every query sees every key.
    pub fn open() -> Self {
        Self { first: 0, mask: Mask::Open }
    }

    /// Causal, with a window where there is one.
    pub fn causal(span: &Span, window: Option<i64>, device: Device) -> Self {
        let all = span.keys();
        // The first query's window begins here.
        let first = window.map_or(0, |window| (span.past + 1 - window).max(0));
        let seen = all - first;
        let mask = if span.count == 1 {
            Mask::Open
        } else if span.count == seen && window.is_none_or(|window| seen <= window) {
            Mask::Causal
        } else {
            let ones = Tensor::ones([1, seen], (tch::Kind::Int64, device));
            Mask::Given(causal_mask(&ones, span.count, window))
        };
        Self { first, mask }
    }
}

/// One layer's attention over the spans of a flat batch.
pub(crate) struct SpanAttention<'a> {
    pub spans: &'a [Span],
    /// One for each span.
    pub masks: &'a [SpanMask],
    /// Pages of this layer [slots, K, Dh]; None where the keys are the rows themselves.
    pub pages: Option<(&'a Tensor, &'a Tensor)>,
    /// Where the new keys are put; None where they are not kept (cross-attention).
    pub write: Option<&'a Tensor>, // [N] i64
}

impl SpanAttention<'_> {
    /// Puts new keys and values [N, K, 1, Dh] into the pages.
    pub fn store(&self, k: &Tensor, v: &Tensor) {
        if let (Some((keys, values)), Some(write)) = (self.pages, self.write) {
            let _ = keys.shallow_clone().index_copy_(0, write, &k.squeeze_dim(2));
            let _ = values.shallow_clone().index_copy_(0, write, &v.squeeze_dim(2));
        }
    }

    /// # Shapes
    /// `q` [N, H, 1, Dh], `fresh` the rows' own keys and values [N, K, 1, Dh] → [N, 1, H·Dh]
    pub fn attend(&self, q: &Tensor, fresh: Option<(&Tensor, &Tensor)>, scale: f64, softcap: Option<f64>) -> Tensor {
        let outputs: Vec<Tensor> = self
            .spans
            .iter()
            .zip(self.masks)
            .map(|(span, view)| {
                let q = of_span(q, span.start, span.count); // [1, H, t, Dh]
                let (k, v) = self.keys_values(span, view.first, fresh); // [1, K, S, Dh]
                attend(&q, &k, &v, &view.mask, scale, softcap) // [1, t, H·Dh]
            })
            .collect();
        match outputs.as_slice() {
            [one] => one.transpose(0, 1), // [t, 1, H·Dh]
            _ => Tensor::cat(&outputs, 1).transpose(0, 1),
        }
    }

    fn keys_values(&self, span: &Span, first: i64, fresh: Option<(&Tensor, &Tensor)>) -> (Tensor, Tensor) {
        match (self.pages, &span.slots, fresh) {
            (Some((keys, values)), Some(slots), _) => {
                let slots = slots.narrow(0, first, slots.size()[0] - first);
                let gather = |pages: &Tensor| pages.index_select(0, &slots).transpose(0, 1).unsqueeze(0);
                (gather(keys), gather(values))
            }
            (_, _, Some((k, v))) => (of_span(k, span.start, span.count), of_span(v, span.start, span.count)),
            _ => panic!("a span has its keys in pages or in the batch"),
        }
    }
}

/// Rows of a flat batch as one sequence: [N, K, 1, Dh] → [1, K, t, Dh]
fn of_span(x: &Tensor, start: i64, count: i64) -> Tensor {
    x.narrow(0, start, count).permute([2, 1, 0, 3])
}
