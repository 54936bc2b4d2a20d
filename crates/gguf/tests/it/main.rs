//! Files written from the shipped base and the golden adapters, read back by a reader of their own. What llama.cpp computes
//! with such files is compared in tests/parity/check_gguf.py.

mod adapters;
mod models;
mod reader;

use std::path::PathBuf;

fn repository(part: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(part)
}
