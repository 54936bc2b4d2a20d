//! What the layers keep for the backward pass, tensor by tensor, and what the costliest moment needs beside it.
//!
//! Counted from the models' own operators: `c` bytes for a value in the type of the arithmetic, 4 in f32. A norm keeps its
//! input; LoRA its input and x·Aᵀ; attention q, k, v and what it gives (FlashAttention, arXiv 2205.14135: no scores); the
//! feed-forward both halves and what they make together.

use tailor_domain::spec::Checkpointing;

use crate::adapter::Adapter;
use crate::amount::Amount;
use crate::settings::{Pass, Settings};
use crate::shape::{Attention, Block, Shape, Stream};

const F32: u64 = 4;
/// Logits of one slice of the cross-entropy, as `tailor-train` cuts them.
const SLICE_LOGITS: u64 = 1 << 24;

/// Tokens of a block's own stream.
pub fn tokens(pass: &Pass, stream: Stream) -> Amount {
    Amount(pass.sequences) * length(pass, stream)
}

pub fn length(pass: &Pass, stream: Stream) -> u64 {
    match stream {
        Stream::Input => pass.input,
        Stream::Target => pass.target,
    }
}

/// Bytes that are in memory when the forward pass has ended; `product` bytes for a value that is multiplied.
pub fn kept(shape: &Shape, adapter: &Adapter, settings: &Settings, product: u64) -> Amount {
    let (pass, c) = (&settings.pass, settings.compute.bytes());
    let blocks = match settings.checkpointing {
        // Nothing below the first layer that learns has a gradient.
        Checkpointing::None => {
            learning(shape, adapter).map(|block| of_block(shape, adapter, block, settings, product)).sum()
        }
        Checkpointing::Selective => {
            let input = |block: &Block| tokens(pass, block.stream) * shape.hidden * c;
            let of = |block: &Block| input(block) + on_tape(shape, adapter, block, settings, product);
            shape.blocks.iter().map(of).sum::<Amount>()
        }
        Checkpointing::Layers => {
            shape.blocks.iter().map(|block| tokens(pass, block.stream) * shape.hidden * c).sum::<Amount>()
        }
        // One layer's is in use and the next one's on its way.
        Checkpointing::LayersOnHost => {
            let inputs = shape.blocks.iter().map(|block| tokens(pass, block.stream) * shape.hidden * c);
            inputs.max().unwrap_or_default() * 2
        }
    };
    let streams = [Stream::Input, Stream::Target].map(|stream| after(shape, settings, stream));
    blocks + streams.into_iter().sum::<Amount>() + labelled(shape, settings)
}

/// The last norm's input and the hidden states of a stream.
fn after(shape: &Shape, settings: &Settings, stream: Stream) -> Amount {
    tokens(&settings.pass, stream) * shape.hidden * 2 * settings.compute.bytes()
}

/// The hidden states that carry a label.
fn labelled(shape: &Shape, settings: &Settings) -> Amount {
    Amount(settings.pass.labels) * shape.hidden * settings.compute.bytes()
}

/// Bytes beside [`kept`] at the costliest moment of a pass; `product` bytes for a value that is multiplied.
pub fn moment(shape: &Shape, adapter: &Adapter, settings: &Settings, product: u64) -> Amount {
    let layer = |block: &Block| {
        let needs =
            made_again(shape, adapter, block, settings, product) + backward(shape, adapter, block, settings, product);
        Amount(needs.0.saturating_sub(gone(shape, block, settings).0))
    };
    let layer = shape.blocks.iter().map(layer).max().unwrap_or_default();
    layer.max(head(shape, adapter, settings, product))
}

/// Of what [`kept`] counts, that which is there no more when a block runs again: what stood behind the last of the stack that ends
/// with the head (an encoder's states are looked at to the end), and the block's input, which is its first norm's.
fn gone(shape: &Shape, block: &Block, settings: &Settings) -> Amount {
    let stream = match settings.checkpointing {
        Checkpointing::None => return Amount::default(),
        Checkpointing::Selective | Checkpointing::Layers | Checkpointing::LayersOnHost => block.stream,
    };
    let input = tokens(&settings.pass, stream) * shape.hidden * settings.compute.bytes();
    match shape.blocks.last().is_some_and(|last| last.stream == stream) {
        true => input + after(shape, settings, stream) + labelled(shape, settings),
        false => input,
    }
}

/// Of what [`of_block`] counts, that which is not there when a block's backward pass begins, and made then.
pub fn made_again(shape: &Shape, adapter: &Adapter, block: &Block, settings: &Settings, product: u64) -> Amount {
    let whole = of_block(shape, adapter, block, settings, product);
    match settings.checkpointing {
        Checkpointing::None => Amount::default(),
        // The block's history takes over what was kept.
        Checkpointing::Selective => Amount(whole.0.saturating_sub(on_tape(shape, adapter, block, settings, product).0)),
        Checkpointing::Layers | Checkpointing::LayersOnHost => whole,
    }
}

/// What a block's products and its attention give, as far as anything looks at it, and LoRA's x·Aᵀ.
fn on_tape(shape: &Shape, adapter: &Adapter, block: &Block, settings: &Settings, product: u64) -> Amount {
    let (pass, c) = (&settings.pass, settings.compute.bytes());
    let own = tokens(pass, block.stream);
    // With dropout LoRA is an operator by itself, in f32.
    let inner = if adapter.dropout() { F32 } else { product };
    let given = |linear: usize, tokens: Amount| tokens * (shape.linears[linear].out * c + adapter.rank(linear) * inner);
    let attention = |attention: &Attention, keys: Amount| {
        let [q, k, v, o] = attention.linears;
        // Capped scores go through plain operators.
        let attended = match attention.capped {
            true => Amount::default(),
            false => own * attention.heads * (attention.head_dim * c + F32),
        };
        given(q, own) + given(k, keys) + given(v, keys) + given(o, own) + attended
    };
    let mut bytes = attention(&block.attention, own);
    if let Some(cross) = &block.cross {
        bytes += attention(cross, tokens(pass, Stream::Input));
    }
    bytes += [block.gate].into_iter().chain(block.up).map(|linear| given(linear, own)).sum::<Amount>();
    // Nothing looks at what the last product gives but a norm behind it.
    bytes + if block.post_norms { given(block.down, own) } else { own * adapter.rank(block.down) * inner }
}

/// Blocks from the first one with an adapter on; an encoder's states come into every block of the decoder.
fn learning<'a>(shape: &'a Shape, adapter: &'a Adapter) -> impl Iterator<Item = &'a Block> {
    let learns = |block: &Block| linears_of(block).any(|linear| adapter.rank(linear) > 0);
    let first = match adapter.virtual_tokens() {
        0 => shape.blocks.iter().position(learns).unwrap_or(shape.blocks.len()),
        _ => 0, // they stand before the first block
    };
    shape.blocks[first..].iter()
}

pub fn linears_of(block: &Block) -> impl Iterator<Item = usize> {
    let attentions = std::iter::once(&block.attention).chain(&block.cross);
    attentions.flat_map(|attention| attention.linears).chain([block.gate]).chain(block.up).chain([block.down])
}

/// What one block keeps.
pub fn of_block(shape: &Shape, adapter: &Adapter, block: &Block, settings: &Settings, product: u64) -> Amount {
    let (pass, c, d) = (&settings.pass, settings.compute.bytes(), shape.hidden);
    let own = tokens(pass, block.stream);
    let lora = |linear: usize, tokens: Amount| {
        let dropped = match adapter.dropout() {
            true => tokens * shape.linears[linear].input * (c + 1),
            false => Amount::default(),
        };
        match adapter.rank(linear) {
            0 => Amount::default(),
            rank => tokens * rank * product + dropped,
        }
    };
    // Layers that read the same tensor share it; with dropout each has its own, and the shared one is let go.
    let input = |linears: &[usize], tokens: Amount, width: u64| {
        let is_kept = !adapter.dropout() && linears.iter().any(|linear| adapter.rank(*linear) > 0);
        if is_kept { tokens * width * c } else { Amount::default() }
    };
    let norms = if block.post_norms { 4 } else { 2 } + u64::from(block.cross.is_some());
    let mut bytes = own * norms * d * c;

    let [q, k, v, o] = block.attention.linears;
    bytes += input(&[q, k, v], own, d) + [q, k, v].map(|linear| lora(linear, own)).into_iter().sum();
    bytes += attended(&block.attention, own, own, length(pass, block.stream), pass, c);
    bytes += lora(o, own);

    if let Some(cross) = &block.cross {
        let seen = tokens(pass, Stream::Input);
        let [q, k, v, o] = cross.linears;
        bytes += input(&[q], own, d) + lora(q, own) + lora(k, seen) + lora(v, seen) + lora(o, own);
        bytes += attended(cross, own, seen, 0, pass, c);
    }

    let inner = shape.linears[block.gate].out;
    let halves = match block.up {
        Some(_) => 2,
        None => 1,
    };
    let gates: Vec<usize> = [block.gate].into_iter().chain(block.up).collect();
    bytes += input(&gates, own, d) + gates.iter().map(|linear| lora(*linear, own)).sum();
    bytes += own * halves * inner * c + input(&[block.down], own, inner) + lora(block.down, own);
    bytes
}

/// What attention keeps: q, k and v as heads, what it gives, and one f32 a query and head. `length` is that of a sequence
/// where scores or a mask of all its pairs are in memory.
fn attended(attention: &Attention, queries: Amount, keys: Amount, length: u64, pass: &Pass, c: u64) -> Amount {
    let Attention { heads, head_dim, .. } = *attention;
    let width = heads * head_dim;
    let pairs = Amount(pass.sequences) * length * length;
    let mut bytes = (queries * 2 * width + keys * 2 * attention.kv_heads * head_dim) * c + queries * heads * F32;
    if attention.normed {
        bytes += (queries * width + keys * attention.kv_heads * head_dim) * c;
    }
    let masked = pass.masked || attention.window.is_some_and(|window| length > window);
    if attention.capped {
        bytes += pairs * heads * (F32 + 2 * c); // under the cap, after it, and the weights
    } else if masked {
        bytes += pairs * c; // the mask as a term of the scores
    }
    bytes
}

/// A block's backward pass where it is widest: at the feed-forward, with the gradients of both halves beside the one that
/// they are made from, whose place in what is kept is free by then; and the gradients of the block's input. Where
/// products are in f32 it is at the feed-forward's last layer: the gradient of its input summed up in f32 and rounded, and
/// the gradient it is made from in f32 as well.
fn backward(shape: &Shape, adapter: &Adapter, block: &Block, settings: &Settings, product: u64) -> Amount {
    let (pass, c) = (&settings.pass, settings.compute.bytes());
    let own = tokens(pass, block.stream);
    let inner = shape.linears[block.gate].out;
    let ranks: u64 = linears_of(block).map(|linear| adapter.rank(linear)).max().unwrap_or(0);
    let wide = if product == c { 2 * c } else { product + c };
    own * inner * wide + own * shape.hidden * (product + 2 * c) + own * ranks * 2 * product
}

/// One slice of logits, which become their own gradient; the states' gradient in f32 and rounded; and a piece of the head
/// where it is brought into the product's type. Capped logits, and a head that is adapted, go through plain operators:
/// logits in f32, their logarithms, and the gradients of both.
fn head(shape: &Shape, adapter: &Adapter, settings: &Settings, product: u64) -> Amount {
    const PIECE: u64 = 1 << 23;
    let (pass, c) = (&settings.pass, settings.compute.bytes());
    let rows = (SLICE_LOGITS / shape.vocab).max(1).min(pass.labels);
    let piece = if product == c { 0 } else { PIECE.min(shape.vocab * shape.hidden) * product };
    let plain = shape.capped_logits || adapter.head_rank() > 0;
    let slice = if plain { rows * shape.vocab * 15 } else { rows * shape.vocab * product };
    let states = Amount(pass.labels) * shape.hidden * 2 * c;
    Amount(slice + piece + rows * shape.hidden * (F32 + product)) + states
}
