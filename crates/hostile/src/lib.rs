//! Files from elsewhere, handed to the parsers as an attacker would: one entry for each parser, which the fuzz targets
//! (`fuzz/`) and the tests here share, so that a file that once broke a parser stays a test. Never a dependency of
//! anything that ships.
//!
//! An entry reads the file and then uses what came out of it: weights are dequantised, adapters are written and read
//! again, texts are encoded, conversations are rendered. It answers with the refusal or with nothing, and panics where
//! the parser broke a promise: a message longer than [`MAX_MESSAGE_BYTES`], something that does not survive the way back.

mod adapter;
mod texts;
mod weights;

pub use adapter::adapter_config;
pub use texts::{chat_template, sentencepiece, tokenizer_config};
pub use weights::{index, quant_state, safetensors};

/// Why a parser would not have the file.
pub type Refused = Result<(), String>;

/// The entry of a parser, and the name of its fuzz target and of its folder of inputs.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]) -> Refused,
}

pub const TARGETS: [Target; 7] = [
    Target { name: "safetensors", run: safetensors },
    Target { name: "index", run: index },
    Target { name: "quant_state", run: quant_state },
    Target { name: "adapter_config", run: adapter_config },
    Target { name: "tokenizer_config", run: tokenizer_config },
    Target { name: "sentencepiece", run: sentencepiece },
    Target { name: "chat_template", run: chat_template },
];

/// A refusal ends in a log line and in a gRPC status, whose headers hold 8 KiB: a hostile file's names must not fill it.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// What stands between the parts of an input. No text in UTF-8 has it, so any file can be a part but the last one alone
/// may be binary.
pub const SEPARATOR: u8 = 0xff;

/// The parts of an input, empty where there are fewer.
fn parts<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut parts = input.splitn(N, |byte| *byte == SEPARATOR);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// The refusal's text.
fn refused(error: impl std::fmt::Display) -> String {
    let message = error.to_string();
    assert!(message.len() <= MAX_MESSAGE_BYTES, "a message of {} bytes: {message:.200}", message.len());
    message
}
