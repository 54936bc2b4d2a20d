//! A flat batch over pages equals whole sequences, however the prompts were cut and whoever else is in the batch.

use tailor_models::{BLOCK_TOKENS, Base, EncoderInput, KvPool, LoraSet, Segment};
use tch::Tensor;

use crate::decoding::at_once;
use crate::{Golden, load, prompts, relative_difference};

const CASES: [&str; 7] = ["llama-gqa-nf4", "mistral-window", "qwen3-window", "gemma2", "gemma3", "t5-v11-nf4", "mt5"];

/// One sequence as the caller of a pool keeps it.
struct Sequence {
    tokens: Vec<u32>,
    past: usize,
    blocks: Vec<u32>,
    cross: Option<(Vec<u32>, usize)>,
}

/// Blocks that are neither in order nor next to each other.
struct Blocks(Vec<u32>);

impl Blocks {
    fn of(pool: &KvPool) -> Self {
        let count = pool.blocks() as u32;
        Self((0..count).map(|n| n * 7 % count).collect())
    }

    fn take(&mut self, tokens: usize) -> Vec<u32> {
        let rest = self.0.split_off(tokens.div_ceil(BLOCK_TOKENS));
        std::mem::replace(&mut self.0, rest)
    }
}

fn begin(base: &Base, prompt: &[u32], blocks: &mut Blocks, pool: &KvPool) -> Sequence {
    let room = blocks.take(prompt.len() + 8);
    if base.family() == tailor_domain::Family::Decoder {
        return Sequence { tokens: prompt.to_vec(), past: 0, blocks: room, cross: None };
    }
    let side = blocks.take(prompt.len());
    base.encode_pages(&[EncoderInput { tokens: prompt, blocks: &side, adapter: None }], pool).unwrap();
    Sequence { tokens: vec![0], past: 0, blocks: room, cross: Some((side, prompt.len())) }
}

/// Takes up to `limit` tokens of each sequence further; the logits after those that have come to their end.
fn advance(base: &Base, sequences: &mut [Sequence], limit: usize, pool: &KvPool) -> Tensor {
    let segments: Vec<Segment<'_>> = sequences
        .iter()
        .map(|sequence| {
            let end = sequence.tokens.len().min(sequence.past + limit);
            Segment {
                tokens: &sequence.tokens[sequence.past..end],
                past: sequence.past,
                blocks: &sequence.blocks,
                cross: sequence.cross.as_ref().map(|(blocks, length)| (blocks.as_slice(), *length)),
                adapter: None,
                logits: usize::from(end == sequence.tokens.len()),
                likeliest: false,
            }
        })
        .collect();
    let logits = base.advance(&segments, pool).unwrap();
    let lengths: Vec<usize> = segments.iter().map(|segment| segment.tokens.len()).collect();
    sequences.iter_mut().zip(lengths).for_each(|(sequence, length)| sequence.past += length);
    logits
}

#[test]
fn pieces_and_steps_in_pages_equal_whole_sequences() {
    for name in CASES {
        let base = load(name);
        let prompts = prompts(&Golden::of(name));
        for piece in [1, 3, 64] {
            let pool = base.kv_pool(48).unwrap();
            let mut blocks = Blocks::of(&pool);
            let mut sequences: Vec<Sequence> =
                prompts.iter().map(|prompt| begin(&base, prompt, &mut blocks, &pool)).collect();
            // The first is read alone in pieces, the others come to it in mid-answer.
            let mut logits = advance(&base, &mut sequences[..1], piece, &pool);
            while sequences[0].past < sequences[0].tokens.len() {
                assert_eq!(logits.size()[0], 0, "no logits in mid-prompt");
                logits = advance(&base, &mut sequences[..1], piece, &pool);
            }
            sequences[0].tokens.push(11);
            let _ = advance(&base, &mut sequences, 64, &pool);
            for (row, sequence) in sequences.iter_mut().enumerate() {
                sequence.tokens.push(20 + row as u32);
            }
            let logits = advance(&base, &mut sequences, 64, &pool);
            let answers: [&[u32]; 3] = [&[11, 20], &[21], &[22]];
            for (row, (prompt, answer)) in prompts.iter().zip(answers).enumerate() {
                let expected = at_once(name, prompt, answer);
                let difference = relative_difference(&logits.get(row as i64).unsqueeze(0), &expected);
                assert!(difference < 1e-5, "{name}, pieces of {piece}, row {row}: {difference}");
            }
        }
    }
}

#[test]
fn a_common_beginning_is_read_once_and_used_by_both() {
    let base = load("llama-gqa-nf4");
    let pool = base.kv_pool(8).unwrap();
    let common: Vec<u32> = (0..BLOCK_TOKENS as u32).map(|n| 5 + n).collect();
    let of = |tail: &[u32], blocks: &[u32], past| Sequence {
        tokens: [common.as_slice(), tail].concat(),
        past,
        blocks: blocks.to_vec(),
        cross: None,
    };
    let mut first = [of(&[40, 41], &[5, 1], 0)];
    let _ = advance(&base, &mut first, 64, &pool);
    let mut second = [of(&[50], &[5, 3], BLOCK_TOKENS)];
    let logits = advance(&base, &mut second, 64, &pool);
    let expected = at_once("llama-gqa-nf4", &common, &[50]);
    assert!(relative_difference(&logits, &expected) < 1e-5);
}

#[test]
fn logits_after_several_tokens_are_those_after_each() {
    for name in CASES {
        let base = load(name);
        let pool = base.kv_pool(48).unwrap();
        let mut blocks = Blocks::of(&pool);
        let prompts = prompts(&Golden::of(name));
        let sequences: Vec<Sequence> = prompts.iter().map(|prompt| begin(&base, prompt, &mut blocks, &pool)).collect();
        let segments = |wanted: &dyn Fn(usize) -> usize| {
            let each = sequences.iter().map(|sequence| Segment {
                tokens: &sequence.tokens,
                past: 0,
                blocks: &sequence.blocks,
                cross: sequence.cross.as_ref().map(|(blocks, length)| (blocks.as_slice(), *length)),
                adapter: None,
                logits: wanted(sequence.tokens.len()),
                likeliest: false,
            });
            each.collect::<Vec<_>>()
        };
        let all = base.advance(&segments(&|tokens| tokens), &pool).unwrap();
        let last = base.advance(&segments(&|_| 1), &pool).unwrap();
        let mut end = 0;
        for (row, sequence) in sequences.iter().enumerate() {
            end += sequence.tokens.len() as i64;
            let difference = relative_difference(&all.get(end - 1).unsqueeze(0), &last.get(row as i64).unsqueeze(0));
            assert!(difference < 1e-6, "{name}, row {row}: {difference}");
            // One token less of the same sequence ends where the row before stands.
            if sequence.tokens.len() > 1 {
                let shorter =
                    Segment { tokens: &sequence.tokens[..sequence.tokens.len() - 1], ..segments(&|_| 1)[row] };
                let before = base.advance(&[shorter], &pool).unwrap();
                let difference = relative_difference(&all.get(end - 2).unsqueeze(0), &before);
                assert!(difference < 1e-5, "{name}, row {row}, before the last: {difference}");
            }
        }
        assert_eq!(all.size()[0], end);
    }
}

#[test]
fn segments_that_do_not_fit_are_refused() {
    let base = load("llama-gqa-nf4");
    let pool = base.kv_pool(2).unwrap();
    let segment =
        Segment { tokens: &[5], past: 0, blocks: &[0], cross: None, adapter: None, logits: 1, likeliest: false };
    let refused = |segment: Segment<'_>| base.advance(&[segment], &pool).unwrap_err().to_string();
    assert!(refused(Segment { tokens: &[], ..segment }).contains("at least 1"));
    assert!(refused(Segment { past: 16, ..segment }).contains("1 new tokens of 17 in blocks for 16"));
    assert!(refused(Segment { logits: 2, ..segment }).contains("logits after 2 tokens are wanted of a segment of 1"));
    let likeliest = base.next(&[Segment { logits: 0, likeliest: true, ..segment }], &pool);
    assert!(likeliest.err().unwrap().to_string().contains("after 0 tokens, and not after 1"));
    assert!(refused(Segment { blocks: &[2], ..segment }).contains("block 2 is not below the pool's 2"));
    assert!(refused(Segment { tokens: &[96], ..segment }).contains("token 96"));
    assert!(refused(Segment { cross: Some((&[1], 3)), ..segment }).contains("encoder"));
    assert!(base.advance(&[], &pool).is_err());
    let input = EncoderInput { tokens: &[5], blocks: &[0], adapter: None };
    assert!(base.encode_pages(&[input], &pool).unwrap_err().to_string().contains("no encoder"));
}

#[test]
fn virtual_tokens_read_in_pieces_do_what_the_tokens_do_whose_embeddings_they_are() {
    for name in ["llama-gqa-nf4", "gemma2", "t5-v11-nf4"] {
        let base = load(name);
        let first = [7u32, 31, 8, 44, 9];
        let mut set = LoraSet::empty(&base);
        set.set_prompt(&base, base.embed(&first).unwrap()).unwrap();
        let (input, pool) = ([&[0; 5][..], &[11, 12, 13]].concat(), base.kv_pool(4).unwrap());
        let segment = |tokens, past| Segment {
            tokens,
            past,
            blocks: &[2],
            cross: None,
            adapter: Some(&set),
            logits: 1,
            likeliest: false,
        };
        let logits = if base.family() == tailor_domain::Family::Decoder {
            let _ = base.advance(&[segment(&input[..3], 0)], &pool).unwrap();
            base.advance(&[segment(&input[3..], 3)], &pool).unwrap()
        } else {
            base.encode_pages(&[EncoderInput { tokens: &input, blocks: &[1], adapter: Some(&set) }], &pool).unwrap();
            let cross = Some((&[1][..], input.len()));
            base.advance(&[Segment { cross, ..segment(&[0], 0) }], &pool).unwrap()
        };
        let expected = at_once(name, &[&first[..], &[11, 12, 13]].concat(), &[]);
        let difference = relative_difference(&logits, &expected);
        assert!(difference < 1e-5, "{name}: {difference}");
    }
}
