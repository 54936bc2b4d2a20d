//! The kernels' text, as one file, and their names.

use sha2::{Digest as _, Sha256};

/// What the host's compiler sees before everything else.
pub(crate) const EMULATOR: &str = include_str!("../../kernels/host/emulator.h");

const PARTS: [&str; 11] = [
    include_str!("../../kernels/params.h"),
    include_str!("../../kernels/prelude.cuh"),
    include_str!("../../kernels/dequantize.cu"),
    include_str!("../../kernels/rms_norm.cu"),
    include_str!("../../kernels/gated.cu"),
    include_str!("../../kernels/rope.cu"),
    include_str!("../../kernels/cross_entropy.cu"),
    include_str!("../../kernels/adamw.cu"),
    include_str!("../../kernels/product.cu"),
    include_str!("../../kernels/paged.cu"),
    include_str!("../../kernels/low_rank.cu"),
];

/// Every kernel, as the shim names them.
pub const KERNELS: [&str; 33] = [
    "tailor_dequantize_bf16",
    "tailor_dequantize_f32",
    "tailor_rms_norm_bf16",
    "tailor_rms_norm_bf16_vec",
    "tailor_rms_norm_f32",
    "tailor_rms_norm_f32_vec",
    "tailor_rms_norm_backward_bf16",
    "tailor_rms_norm_backward_bf16_vec",
    "tailor_rms_norm_backward_f32",
    "tailor_rms_norm_backward_f32_vec",
    "tailor_gated_bf16",
    "tailor_gated_bf16_vec",
    "tailor_gated_f32",
    "tailor_gated_f32_vec",
    "tailor_gated_backward_bf16",
    "tailor_gated_backward_bf16_vec",
    "tailor_gated_backward_f32",
    "tailor_gated_backward_f32_vec",
    "tailor_rope_bf16",
    "tailor_rope_bf16_vec",
    "tailor_rope_f32",
    "tailor_rope_f32_vec",
    "tailor_cross_entropy_bf16",
    "tailor_cross_entropy_f32",
    "tailor_adamw",
    "tailor_adamw8",
    "tailor_product_8",
    "tailor_product_16",
    "tailor_product_32",
    "tailor_turn_and_keep",
    "tailor_attend_pages",
    "tailor_low_rank_inner",
    "tailor_low_rank_outer",
];

/// All kernels in one translation unit.
pub fn all() -> String {
    PARTS.join("\n")
}

/// SHA-256 of the parts in hexadecimal, with the words that belong to a build.
pub(crate) fn digest(words: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in PARTS.iter().chain(&[EMULATOR]).chain(words) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    format!("{:x}", hasher.finalize())
}
