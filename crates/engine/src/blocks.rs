//! Which blocks of the cache belong to whom, and which may be used again (vLLM's prefix caching, arXiv 2309.06180 §4.4).
//!
//! A full block is named by its content: the sha256 over what it was computed with (the adapter's digest or the base), the
//! name of the block before it, and its own tokens. So two prompts share exactly what they have in common under the same
//! adapter, and a name can never mean other weights. A block that nobody uses any more keeps its content until its
//! place is needed; the longest unused goes first.
//!
//! Whoever begins reserves all blocks it may come to need, so nobody who has begun is ever sent back.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest as _, Sha256};
use tailor_models::BLOCK_TOKENS;

/// A block's content.
pub type Name = [u8; 32];

pub struct Blocks {
    /// Sequences that hold each block.
    holders: Vec<u32>,
    /// What each block holds, where it may be shared.
    names: Vec<Option<Name>>,
    named: HashMap<Name, u32>,
    /// Held by nobody and without content.
    free: Vec<u32>,
    /// Held by nobody, content kept; by when they were last used.
    idle: BTreeMap<u64, u32>,
    last_used: Vec<u64>,
    clock: u64,
    /// Promised and not taken yet.
    reserved: usize,
}

impl Blocks {
    pub fn new(count: usize) -> Self {
        Self {
            holders: vec![0; count],
            names: vec![None; count],
            named: HashMap::new(),
            // Taken from the end: low numbers first, so that memory is touched as it is needed.
            free: (0..count as u32).rev().collect(),
            idle: BTreeMap::new(),
            last_used: vec![0; count],
            clock: 0,
            reserved: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Held by a sequence.
    pub fn held(&self) -> usize {
        self.total() - self.free.len() - self.idle.len()
    }

    /// Promises `count` blocks. False where there are not so many.
    pub fn reserve(&mut self, count: usize) -> bool {
        let fits = self.reserved + count <= self.free.len() + self.idle.len();
        if fits {
            self.reserved += count;
        }
        fits
    }

    /// Gives promised blocks back that were never taken.
    pub fn unreserve(&mut self, count: usize) {
        self.reserved = self.reserved.saturating_sub(count);
    }

    /// One of the promised blocks, empty. None if more is taken than was promised.
    pub fn take(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| self.idle.pop_first().map(|(_, block)| block))?;
        if let Some(name) = self.names[block as usize].take() {
            self.named.remove(&name);
        }
        self.holders[block as usize] = 1;
        self.unreserve(1);
        Some(block)
    }

    /// Whether a block with this content is there.
    pub fn knows(&self, name: &Name) -> bool {
        self.named.contains_key(name)
    }

    /// The block with this content, in the place of one of the promised.
    pub fn share(&mut self, name: &Name) -> Option<u32> {
        let block = *self.named.get(name)?;
        let holders = &mut self.holders[block as usize];
        if *holders == 0 {
            self.idle.remove(&self.last_used[block as usize]);
        }
        *holders += 1;
        self.unreserve(1);
        Some(block)
    }

    /// Says what a held block now holds. A second block with the same content stays unnamed.
    pub fn name(&mut self, block: u32, name: Name) {
        if self.names[block as usize].is_none() && !self.named.contains_key(&name) {
            self.names[block as usize] = Some(name);
            self.named.insert(name, block);
        }
    }

    pub fn release(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders = holders.saturating_sub(1);
        if *holders > 0 {
            return;
        }
        if self.names[block as usize].is_some() {
            self.clock += 1;
            self.last_used[block as usize] = self.clock;
            self.idle.insert(self.clock, block);
        } else {
            self.free.push(block);
        }
    }
}

/// Names of the full blocks of `tokens`, the first following `root`.
pub fn names(root: &Name, tokens: &[u32]) -> Vec<Name> {
    let mut names: Vec<Name> = Vec::with_capacity(tokens.len() / BLOCK_TOKENS);
    for tokens in tokens.chunks_exact(BLOCK_TOKENS) {
        names.push(next_name(names.last().unwrap_or(root), tokens));
    }
    names
}

/// The name of a block that holds `tokens` after the block `before`.
pub fn next_name(before: &Name, tokens: &[u32]) -> Name {
    let mut hash = Sha256::new();
    hash.update(before);
    tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    hash.finalize().into()
}

/// Where names begin: what is computed, and with which weights.
pub fn root(purpose: &str, adapter: Option<&str>) -> Name {
    let mut hash = Sha256::new();
    hash.update(purpose);
    hash.update([0]);
    hash.update(adapter.unwrap_or(""));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(blocks: &mut Blocks, count: usize) -> Vec<u32> {
        assert!(blocks.reserve(count));
        (0..count).map(|_| blocks.take().expect("promised")).collect()
    }

    #[test]
    fn names_follow_the_weights_the_beginning_and_the_tokens() {
        let tokens: Vec<u32> = (0..3 * BLOCK_TOKENS as u32 + 5).collect();
        let of = |adapter, tokens: &[u32]| names(&root("decoder", adapter), tokens);
        let plain = of(None, &tokens);
        assert_eq!(plain.len(), 3, "the last block is not full");
        assert_eq!(of(None, &tokens[..BLOCK_TOKENS]), plain[..1]);
        assert!(of(None, &tokens[..BLOCK_TOKENS - 1]).is_empty());
        assert!(of(Some("sha256:1"), &tokens).iter().zip(&plain).all(|(a, b)| a != b));
        let mut other = tokens.clone();
        other[BLOCK_TOKENS] += 1;
        let other = of(None, &other);
        assert_eq!(other[0], plain[0]);
        assert!(other[1] != plain[1] && other[2] != plain[2], "what follows a difference differs");
        assert_eq!(next_name(&plain[1], &tokens[2 * BLOCK_TOKENS..3 * BLOCK_TOKENS]), plain[2]);
    }

    #[test]
    fn a_promise_is_kept_and_no_more_is_promised_than_there_is() {
        let mut blocks = Blocks::new(3);
        assert!(blocks.reserve(2));
        assert!(!blocks.reserve(2));
        assert!(blocks.take().is_some());
        blocks.unreserve(1);
        assert!(blocks.reserve(2));
        assert!(blocks.take().is_some() && blocks.take().is_some());
        assert!(blocks.take().is_none());
        assert_eq!(blocks.held(), 3);
    }

    #[test]
    fn a_named_block_is_shared_while_held_and_after_and_the_longest_unused_goes_first() {
        let mut blocks = Blocks::new(2);
        let (a, b) = (root("a", None), root("b", None));
        let taken = take(&mut blocks, 2);
        blocks.name(taken[0], a);
        blocks.name(taken[1], b);
        blocks.release(taken[0]);
        blocks.release(taken[1]);
        assert_eq!(blocks.held(), 0);
        // `a` is used again, so `b` is the longest unused.
        assert!(blocks.reserve(1));
        assert_eq!(blocks.share(&a), Some(taken[0]));
        assert!(blocks.reserve(1), "the other is there to be taken");
        assert_eq!(blocks.take(), Some(taken[1]));
        assert!(!blocks.knows(&b) && blocks.knows(&a));
        blocks.release(taken[0]);
        blocks.release(taken[1]);
        assert_eq!(take(&mut blocks, 2).len(), 2);
        assert!(!blocks.knows(&a));
    }

    #[test]
    fn a_shared_block_is_let_go_when_its_last_holder_does() {
        let mut blocks = Blocks::new(2);
        let a = root("a", None);
        let first = take(&mut blocks, 1)[0];
        blocks.name(first, a);
        assert!(blocks.reserve(1));
        assert_eq!(blocks.share(&a), Some(first));
        blocks.release(first);
        assert_eq!(blocks.held(), 1);
        let other = take(&mut blocks, 1)[0];
        assert_ne!(other, first, "a held block is not given away");
        assert!(!blocks.reserve(1));
        blocks.release(first);
        assert_eq!(blocks.held(), 1);
    }
}
