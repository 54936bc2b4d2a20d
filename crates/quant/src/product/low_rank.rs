//! What some rows of x get in addition: s·B·A·x, each with factors of its own. Nothing is padded, neither to the largest rank nor
//! to a register.

use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;

use super::activations::Shared;
use super::workers::Runs;
use super::{Dense, Inputs, Kernels, lines, total};

/// Rows of A that one task takes.
const RANK_TASK: usize = 4;

/// The factors for some rows of x.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    pub a: &'a [bf16], // [R, in]
    /// B the other way round: the outputs of a tile lie beside each other, and a register's lanes are outputs.
    pub b: &'a [bf16], // [R, out]
    pub rank: usize,
    pub scale: f32,
    /// Rows of x, each in one of a product's terms at most.
    pub rows: &'a [usize],
}

/// A·x of all terms of all products that are made together, and who has got how far with them.
pub(super) struct Projected<'a> {
    terms: Vec<Term<'a>>,
    tasks: Vec<(usize, usize)>, // term, first row of A
    runs: Runs,
    done: AtomicUsize,
    values: Vec<f32>,
    /// Of each product and row of x: the term, and where its s·A·x begins.
    places: Vec<Option<(usize, usize)>>,
    rows: usize,
}

struct Term<'a> {
    term: LowRank<'a>,
    /// Place of the first row's values.
    first: usize,
}

impl<'a> Projected<'a> {
    /// `products`: the terms of each product.
    pub fn new(products: impl Iterator<Item = &'a [LowRank<'a>]>, rows: usize, workers: usize) -> Self {
        let (mut terms, mut tasks, mut places, mut size) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (product, own) in products.enumerate() {
            for term in own {
                places.resize((product + 1) * rows, None);
                for (at, row) in term.rows.iter().enumerate() {
                    places[product * rows + row] = Some((terms.len(), size + at * term.rank));
                }
                tasks.extend((0..term.rank).step_by(RANK_TASK).map(|first| (terms.len(), first)));
                terms.push(Term { term: *term, first: size });
                size += term.rows.len() * term.rank;
            }
        }
        let (runs, done) = (Runs::new(tasks.len(), workers), AtomicUsize::new(0));
        Self { terms, tasks, runs, done, values: vec![0.0; size], places, rows }
    }

    /// Where the values go.
    pub fn output(&mut self) -> Shared<f32> {
        Shared(self.values.as_mut_ptr())
    }

    /// Computes its share; returns when everybody's is there. Each worker calls it once.
    ///
    /// `output` is [`Self::output`].
    pub fn compute(&self, x: &Inputs, kernels: Kernels, output: &Shared<f32>) {
        self.runs.take(|task| {
            let (term, first) = self.tasks[task];
            let Term { term, first: place } = &self.terms[term];
            let width = x.width();
            let count = RANK_TASK.min(term.rank - first);
            let weights = &term.a[first * width..(first + count) * width];
            for (at, row) in term.rows.iter().enumerate() {
                let mut sums = [[0f32; 8]; RANK_TASK];
                // SAFETY: chosen for this processor; a row of sums for each row of A.
                unsafe { (kernels.dense)(&Dense { weights, x: x.row(*row), width }, sums.as_mut_ptr()) };
                for (i, sums) in sums[..count].iter().enumerate() {
                    let to = place + at * term.rank + first + i;
                    // SAFETY: within the values, and this task's alone.
                    unsafe { *output.0.add(to) = total(sums) * term.scale };
                }
            }
            self.done.fetch_add(1, Ordering::Release);
        });
        // Whoever has the last tasks is running: this takes no longer than they do.
        while self.done.load(Ordering::Acquire) < self.tasks.len() {
            std::hint::spin_loop();
        }
    }

    /// Rows of x that have a term in a product, with the term and the place of s·A·x.
    fn of_product(&self, product: usize) -> impl Iterator<Item = (usize, &LowRank<'a>, usize)> {
        let places = self.places.iter().skip(product * self.rows).take(self.rows);
        places.enumerate().filter_map(|(row, place)| place.map(|(term, first)| (row, &self.terms[term].term, first)))
    }

    /// Asks for those columns of B that [`Self::add_to`] will want: of each tile a few lines here and there, which nothing sees
    /// coming.
    pub fn ask(&self, product: usize, out: usize, outs: std::ops::Range<usize>) {
        for (_, term, _) in self.of_product(product) {
            term.b.chunks_exact(out).for_each(|b| lines::ask(&b[outs.clone()]));
        }
    }

    /// Adds B·(s·A·x) to some outputs of all rows that have a term; `y` gives a row's.
    pub fn add_to<'y>(
        &self,
        product: usize,
        out: usize,
        first: usize,
        kernels: Kernels,
        output: &Shared<f32>,
        y: impl Fn(usize) -> &'y mut [f32],
    ) {
        for (row, term, place) in self.of_product(product) {
            let y = y(row);
            assert!(term.b.len() == term.rank * out && first + y.len() <= out);
            // SAFETY: the values of this row, complete since `compute` has returned.
            let values = unsafe { std::slice::from_raw_parts(output.0.add(place).cast_const(), term.rank) };
            // SAFETY: chosen for this processor; looked at above.
            unsafe { (kernels.expand)(term.b.as_ptr().add(first), out, values, y) };
        }
    }
}
