//! Attention over heads, and the masks it takes. "Attention is all you need", arXiv 1706.03762 §3.2.

use std::rc::Rc;

use tch::{Kind, Tensor};

use crate::texts::Texts;

/// Splits the last dimension into heads: [B, T, H·Dh] → [B, H, T, Dh].
pub(crate) fn heads(x: &Tensor, head_dim: i64) -> Tensor {
    let (batch, tokens, _) = shape3(x);
    x.view([batch, tokens, -1, head_dim]).transpose(1, 2)
}

/// Back again: [B, H, T, Dh] → [B, T, H·Dh].
pub(crate) fn unheads(x: &Tensor) -> Tensor {
    let size = x.size();
    x.transpose(1, 2).reshape([size[0], size[2], -1])
}

/// All tokens one after the other: [B, H, T, Dh] → [B·T, H, Dh], a view where the memory lies so.
pub(crate) fn heads_last(x: &Tensor) -> Tensor {
    let size = x.size();
    x.transpose(1, 2).reshape([size[0] * size[2], size[1], size[3]])
}

pub(crate) fn shape3(x: &Tensor) -> (i64, i64, i64) {
    x.size3().unwrap_or_else(|error| panic!("a tensor of three dimensions is needed: {error}"))
}

/// Which keys each query may see.
pub(crate) enum Mask {
    /// Query t sees keys 0..=t, nothing is padded.
    Causal,
    /// Every query sees every key.
    Open,
    /// True where a query sees a key, or a term added to the scores: broadcasts to [B, H, T, S].
    Given(Tensor),
    /// Query t sees the keys of its own text up to itself.
    Texts(Rc<Texts>),
}

/// softmax(cap(q·kᵀ·scale) + mask)·v
///
/// # Shapes
/// `q` [B, H, T, Dh], `k` and `v` [B, K, S, Dh] with K dividing H → [B, T, H·Dh]
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask, scale: f64, softcap: Option<f64>) -> Tensor {
    if let Some(softcap) = softcap {
        return unheads(&attend_capped(q, k, v, mask, scale, softcap));
    }
    let (given, causal) = match mask {
        Mask::Texts(texts) => return texts.attend(q, k, v, scale),
        Mask::Causal => (None, true),
        Mask::Open => (None, false),
        Mask::Given(mask) => (Some(mask), false),
    };
    unheads(&tailor_torch::attend(q, k, v, given, causal, scale).unwrap_or_else(|error| panic!("{error}")))
}

/// With capped scores, which no fused kernel knows: all scores are in memory at once.
fn attend_capped(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask, scale: f64, softcap: f64) -> Tensor {
    let (new, all) = (q.size()[2], k.size()[2]);
    let groups = q.size()[1] / k.size()[1];
    let spread = |x: &Tensor| x.repeat_interleave_self_int(groups, 1, None); // [B, H, S, Dh]
    let scores = softcapped(&(q.matmul(&spread(k).transpose(2, 3)) * scale), softcap); // [B, H, T, S]
    let scores = match mask {
        Mask::Causal => {
            let ones = Tensor::ones([1, all], (Kind::Int64, q.device()));
            biased(&scores, &causal_mask(&ones, new, None))
        }
        Mask::Open => scores,
        Mask::Given(seen) if seen.kind() == Kind::Bool => biased(&scores, seen),
        Mask::Given(term) => scores + term,
        Mask::Texts(_) => panic!("capped scores take a mask"), // `Decoder::view` gives one
    };
    scores.softmax(-1, Kind::Float).to_kind(q.kind()).matmul(&spread(v))
}

/// cap · tanh(x / cap): scores that stay within ±cap. Gemma 2 (arXiv 2408.00118 §2).
pub(crate) fn softcapped(x: &Tensor, cap: f64) -> Tensor {
    (x / cap).tanh() * cap
}

/// Causal, padding, packing and window in one: `keys` [B, S] as in [`crate::Input::Decoder`], for the last `new` of S
/// tokens → [B, 1, T, S].
///
/// A padded query sees itself, so that no row of scores is empty: an empty row is NaN and would spread.
pub(crate) fn causal_mask(keys: &Tensor, new: i64, window: Option<i64>) -> Tensor {
    let all = keys.size()[1];
    let options = (Kind::Int64, keys.device());
    let columns = Tensor::arange(all, options).view([1, 1, 1, all]);
    let rows = Tensor::arange_start(all - new, all, options).view([1, 1, new, 1]);
    let mut seen = columns.le_tensor(&rows);
    if let Some(window) = window {
        seen = seen.logical_and(&columns.gt_tensor(&(&rows - window)));
    }
    let of_keys = keys.view([-1, 1, 1, all]);
    let of_queries = keys.narrow(1, all - new, new).view([-1, 1, new, 1]);
    let same = of_keys.eq_tensor(&of_queries).logical_and(&of_keys.ne(0));
    seen.logical_and(&same).logical_or(&columns.eq_tensor(&rows))
}

/// Positions of the last `new` tokens, each counted within its own text; padding does not count. `keys` [B, S] as in
/// [`crate::Input::Decoder`] → [B, T]
pub(crate) fn positions(keys: &Tensor, new: i64) -> Tensor {
    let before_and_self = causal_mask(keys, new, None).squeeze_dim(1); // [B, T, S]
    before_and_self.sum_dim_intlist([-1i64].as_slice(), false, Kind::Int64) - 1
}

/// `bias` [1, H, T, S] where `seen` (broadcasts to [B, H, T, S]), minus infinity elsewhere.
pub(crate) fn biased(bias: &Tensor, seen: &Tensor) -> Tensor {
    bias.masked_fill(&seen.logical_not(), f64::NEG_INFINITY)
}
