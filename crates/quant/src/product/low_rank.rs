//! What some rows of x get in addition: s·B·A·x, each with factors of its own. Nothing is padded but B's rank, to
//! [`RANK_STEP`].

use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;

use super::activations::Shared;
use super::workers::take;
use super::{Dense, Inputs, Kernels, Lanes, total};

/// B's rows are padded with zeros to a multiple of this.
pub const RANK_STEP: usize = 8;
/// Rows of A that one task takes.
const RANK_TASK: usize = 4;

/// Length of B's rows for a rank.
pub fn padded_rank(rank: usize) -> usize {
    rank.next_multiple_of(RANK_STEP)
}

/// The factors for some rows of x.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    pub a: &'a [bf16], // [R, in]
    pub b: &'a [bf16], // [out, padded R]
    pub rank: usize,
    pub scale: f32,
    /// Rows of x, each in one of a product's terms at most.
    pub rows: &'a [usize],
}

/// A·x of all terms of all products that are made together, and who has got how far with them.
pub(super) struct Projected<'a> {
    terms: Vec<Term<'a>>,
    tasks: Vec<(usize, usize)>, // term, first row of A
    next: AtomicUsize,
    done: AtomicUsize,
    values: Vec<f32>,
    /// Of each product and row of x: the term, and where its s·A·x begins.
    places: Vec<Option<(usize, usize)>>,
    rows: usize,
}

struct Term<'a> {
    term: LowRank<'a>,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for the tiles of x86-64"))]
    product: usize,
    /// What s·A·x is divided by, since the sums it is added to are multiplied by it later.
    unit: f32,
    /// Place of the first row's values.
    first: usize,
}

impl<'a> Projected<'a> {
    /// `products`: the terms of each product, and the unit of its sums.
    pub fn new(products: impl Iterator<Item = (&'a [LowRank<'a>], f32)>, rows: usize) -> Self {
        let (mut terms, mut tasks, mut places, mut size) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (product, (own, unit)) in products.enumerate() {
            for term in own {
                places.resize((product + 1) * rows, None);
                for (at, row) in term.rows.iter().enumerate() {
                    places[product * rows + row] = Some((terms.len(), size + at * padded_rank(term.rank)));
                }
                tasks.extend((0..term.rank).step_by(RANK_TASK).map(|first| (terms.len(), first)));
                terms.push(Term { term: *term, product, unit, first: size });
                size += term.rows.len() * padded_rank(term.rank);
            }
        }
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { terms, tasks, next, done, values: vec![0.0; size], places, rows }
    }

    /// Where the values go.
    pub fn output(&mut self) -> Shared<f32> {
        Shared(self.values.as_mut_ptr())
    }

    /// Computes its share; returns when everybody's is there.
    ///
    /// `output` is [`Self::output`].
    pub fn compute(&self, x: &Inputs, kernels: Kernels, output: &Shared<f32>) {
        take(&self.next, self.tasks.len(), |task| {
            let (term, first) = self.tasks[task];
            let Term { term, unit, first: place, .. } = &self.terms[term];
            let width = x.width();
            let count = RANK_TASK.min(term.rank - first);
            let weights = &term.a[first * width..(first + count) * width];
            for (at, row) in term.rows.iter().enumerate() {
                let mut sums = [[0f32; 8]; RANK_TASK];
                // SAFETY: chosen for this processor; a row of sums for each row of A.
                unsafe { (kernels.dense)(&Dense { weights, x: x.row(*row), width }, sums.as_mut_ptr()) };
                for (i, sums) in sums[..count].iter().enumerate() {
                    let to = place + at * padded_rank(term.rank) + first + i;
                    // SAFETY: within the values, and this task's alone.
                    unsafe { *output.0.add(to) = total(sums) * (term.scale / unit) };
                }
            }
            self.done.fetch_add(1, Ordering::Release);
        });
        // Whoever has the last tasks is running: this takes no longer than they do.
        while self.done.load(Ordering::Acquire) < self.tasks.len() {
            std::hint::spin_loop();
        }
    }

    /// Each term: of which product, itself, and the place of its first row's values.
    #[cfg(target_arch = "x86_64")]
    pub fn terms(&self) -> impl Iterator<Item = (usize, &LowRank<'a>, usize)> {
        self.terms.iter().map(|term| (term.product, &term.term, term.first))
    }

    /// Whether a row of x has a term in a product.
    #[cfg(target_arch = "x86_64")]
    pub fn has(&self, product: usize, row: usize) -> bool {
        self.places.get(product * self.rows + row).is_some_and(Option::is_some)
    }

    /// Adds B·(s·A·x) of a row of x to the sums of the outputs from `out` on: every `stride`th of `sums`.
    pub fn add_to(
        &self,
        place: (usize, usize),
        out: usize,
        kernels: Kernels,
        output: &Shared<f32>,
        sums: &mut [Lanes],
        stride: usize,
    ) {
        let (product, row) = place;
        let Some(Some((term, first))) = self.places.get(product * self.rows + row) else { return };
        let term = &self.terms[*term].term;
        let padded = padded_rank(term.rank);
        let count = sums.len().div_ceil(stride);
        // SAFETY: the values of this row, complete since `compute` has returned.
        let values = unsafe { std::slice::from_raw_parts(output.0.add(*first).cast_const(), padded) };
        let b = &term.b[out * padded..(out + count) * padded];
        // SAFETY: chosen for this processor; a sum for each row of b.
        unsafe { (kernels.expand)(b, values, sums.as_mut_ptr(), stride) };
    }
}
