//! The store over real backends, and over backends that fail.

mod backends;
mod failures;
