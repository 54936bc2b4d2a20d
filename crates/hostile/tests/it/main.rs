//! Hostile files, parser by parser: refused with the file or field, the value and the limit, or read and used without harm.

mod corpus;
#[cfg(unix)]
mod folders;
mod refusals;
