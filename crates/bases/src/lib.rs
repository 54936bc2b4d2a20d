//! Pretrains the two tiny bases that the demo and the tests use.
//!
//! `tasks` draws text from the corpus, `tokenizer` builds the tokenizers, `examples` turns text into batches of ids,
//! `recipe` says what each base is, and `pretrain` trains it with the models of `tailor-models`.

pub mod examples;
pub mod pretrain;
pub mod recipe;
pub mod tasks;
pub mod tokenizer;

mod adam;
