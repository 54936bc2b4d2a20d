//! Keys and values of the tokens seen so far.

use tch::{Kind, Tensor};

use crate::spans::SpanAttention;

/// Where a layer keeps the keys and values that it makes.
pub(crate) enum Memory<'a> {
    /// Nowhere: the whole sequence is there.
    None,
    Growing(&'a mut LayerCache),
    /// A flat batch, each sequence attended to by itself.
    Spans(&'a SpanAttention<'a>),
}

impl<'a> From<Option<&'a mut LayerCache>> for Memory<'a> {
    fn from(cache: Option<&'a mut LayerCache>) -> Self {
        cache.map_or(Self::None, Self::Growing)
    }
}

/// Positions by which buffers are cut.
const STEP: i64 = 32;

/// One layer's keys and values. Where it is known how many tokens will come, the buffers are made for all of them at once;
/// else they grow by doubling.
#[derive(Default)]
pub(crate) struct LayerCache {
    buffers: Option<(Tensor, Tensor)>, // [B, K, capacity, Dh]
    length: i64,
    /// Tokens that will come, those that are there included; 0 where nobody knows.
    expected: i64,
}

impl LayerCache {
    /// For so many tokens in all.
    pub fn expecting(tokens: i64) -> Self {
        Self { expected: tokens, ..Self::default() }
    }

    /// Appends `k` and `v` [B, K, T, Dh]; gives all of them [B, K, S, Dh].
    pub fn push(&mut self, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let new = k.size()[2];
        let needed = self.length + new;
        let capacity = self.buffers.as_ref().map_or(0, |(k, _)| k.size()[2]);
        if needed > capacity {
            let grow = |new: &Tensor, old: Option<&Tensor>| {
                let mut size = new.size();
                let wanted = if self.expected > 0 { self.expected } else { capacity * 2 };
                size[2] = (needed.max(wanted) + STEP - 1) / STEP * STEP;
                let buffer = Tensor::zeros(&size, (new.kind(), new.device()));
                if let Some(old) = old {
                    buffer.narrow(2, 0, self.length).copy_(&old.narrow(2, 0, self.length));
                }
                buffer
            };
            let old = self.buffers.as_ref();
            self.buffers = Some((grow(k, old.map(|(k, _)| k)), grow(v, old.map(|(_, v)| v))));
        }
        let start = std::mem::replace(&mut self.length, needed);
        match &self.buffers {
            None => (k.shallow_clone(), v.shallow_clone()),
            Some((keys, values)) => {
                keys.narrow(2, start, new).copy_(k);
                values.narrow(2, start, new).copy_(v);
                (keys.narrow(2, 0, needed), values.narrow(2, 0, needed))
            }
        }
    }

    /// Keeps the rows of `index`, without the first `trim` tokens.
    pub fn keep(&mut self, index: &Tensor, trim: i64) {
        self.length -= trim;
        self.expected = (self.expected - trim).max(0);
        let length = self.length;
        let keep = |x: &Tensor| x.narrow(2, trim, length).index_select(0, index);
        self.buffers = self.buffers.take().map(|(k, v)| (keep(&k), keep(&v)));
    }

    /// The rows of both, each padded on the left to `length` tokens.
    pub fn join(self, other: Self, length: i64) -> Self {
        let pad = |x: &Tensor, has: i64| x.narrow(2, 0, has).constant_pad_nd([0, 0, length - has, 0].as_slice());
        let buffers = match (self.buffers, other.buffers) {
            (Some((k, v)), Some((other_k, other_v))) => {
                let both = |a: &Tensor, b: &Tensor| Tensor::cat(&[pad(a, self.length), pad(b, other.length)], 0);
                Some((both(&k, &other_k), both(&v, &other_v)))
            }
            (one, other) => one.or(other),
        };
        Self { buffers, length, expected: 0 }
    }

    pub fn bytes(&self) -> usize {
        let bytes = |x: &Tensor| x.numel() * x.kind().elt_size_in_bytes();
        self.buffers.as_ref().map_or(0, |(k, v)| bytes(k) + bytes(v))
    }
}

/// The encoder's side of an encoder-decoder, computed once.
pub(crate) struct Cross {
    pub layers: Vec<(Tensor, Tensor)>, // [B, H, Se, Dh]
    pub mask: Tensor,                  // [B, Se]
}

impl Cross {
    pub fn keep(&mut self, index: &Tensor) {
        self.mask = self.mask.index_select(0, index);
        for (k, v) in &mut self.layers {
            *k = k.index_select(0, index);
            *v = v.index_select(0, index);
        }
    }

    /// The rows of both, the shorter padded on the right.
    pub fn join(self, other: Self) -> Self {
        let length = self.mask.size()[1].max(other.mask.size()[1]);
        let mask = |x: &Tensor| x.constant_pad_nd([0, length - x.size()[1]].as_slice());
        let states = |x: &Tensor| x.constant_pad_nd([0, 0, 0, length - x.size()[2]].as_slice());
        let both = |a: &Tensor, b: &Tensor| Tensor::cat(&[states(a), states(b)], 0);
        let pairs = self.layers.iter().zip(&other.layers);
        Self {
            layers: pairs.map(|((k, v), (other_k, other_v))| (both(k, other_k), both(v, other_v))).collect(),
            mask: Tensor::cat(&[mask(&self.mask), mask(&other.mask)], 0),
        }
    }

    pub fn bytes(&self) -> usize {
        let bytes = |x: &Tensor| x.numel() * x.kind().elt_size_in_bytes();
        self.layers.iter().map(|(k, v)| bytes(k) + bytes(v)).sum()
    }
}

/// All layers' caches and which of the cached tokens are real.
pub(crate) struct Cache {
    pub layers: Vec<LayerCache>,
    pub mask: Tensor, // [B, S] i64
    pub cross: Option<Cross>,
}

impl Cache {
    /// `expected`: as of [`LayerCache::expecting`], 0 where it is not known.
    pub fn new(layers: usize, cross: Option<Cross>, batch: i64, expected: i64, device: tch::Device) -> Self {
        let mask = Tensor::zeros([batch, 0], (Kind::Int64, device));
        Self { layers: (0..layers).map(|_| LayerCache::expecting(expected)).collect(), mask, cross }
    }

    /// Takes the new tokens' mask [B, T] in; gives the mask of all [B, S].
    pub fn extend(&mut self, new: &Tensor) -> Tensor {
        self.mask = Tensor::cat(&[&self.mask, &new.to_kind(Kind::Int64)], 1);
        self.mask.shallow_clone()
    }
}
