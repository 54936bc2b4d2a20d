//! What this crate makes of the tensors of a file, or of a folder: for `tests/parity/check_quant.py`, which compares.
//!
//! `cargo run -p tailor-quant --example codes -- tensors FOLDER OUTPUTS.safetensors`
//!
//! The folder's `model.safetensors` holds, for each case, `CASE.input` and what bitsandbytes made of it under
//! bitsandbytes' own keys for `CASE.weight`; code, block size and nesting are read from there. Outputs: `CASE.weight…`
//! as we quantise it, `CASE.around…` the same around bitsandbytes' offset, and `CASE.dequantized` in the input's own
//! type and `CASE.bf16`: bitsandbytes' weight as we dequantise it.
//!
//! `cargo run -p tailor-quant --example codes -- folder SOURCE TARGET CODE BLOCKSIZE f32|bf16`
//!
//! Quantises a Hugging Face folder into a new one.

use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, View, serialize_to_file};
use tailor_domain::QuantCode;
use tailor_quant::{
    Backend, BlockSize, Checkpoint, Float, QuantOptions, Quantized, Scales, quantize_bytes, quantize_folder,
    quantize_with_offset,
};

type Failure = Box<dyn std::error::Error>;

const CODES: [QuantCode; 5] =
    [QuantCode::Nf4, QuantCode::Nf4Single, QuantCode::Fp4, QuantCode::Uniform4, QuantCode::None];

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tensors", folder, outputs] => tensors(Path::new(folder), Path::new(outputs)),
        ["folder", source, target, code, blocksize, compute] => {
            let code = CODES.into_iter().find(|known| known.as_str() == *code);
            let compute = if *compute == "f32" { Float::F32 } else { Float::Bf16 };
            let options = QuantOptions {
                code: code.ok_or("the code is none of nf4, nf4-single, fp4, uniform4, none")?,
                blocksize: BlockSize::try_new(blocksize.parse()?)?,
                compute,
                ..QuantOptions::default()
            };
            quantize_folder(Path::new(source), Path::new(target), &options, &mut |_| {})?;
            Ok(())
        }
        _ => Err("usage: codes tensors FOLDER OUTPUTS | codes folder SOURCE TARGET CODE BLOCKSIZE f32|bf16".into()),
    }
}

fn tensors(folder: &Path, outputs: &Path) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(folder)?;
    let mut out = Outputs::default();
    for case in checkpoint.names().filter_map(|name| name.strip_suffix(".input")) {
        let source = checkpoint.tensor(&format!("{case}.input"))?;
        let dtype = source.float().ok_or_else(|| format!("{case} is no float"))?;
        let theirs = checkpoint.quantized(&format!("{case}.weight"))?.ok_or_else(|| format!("{case} has no weight"))?;
        let (code, blocksize) = (theirs.code(), BlockSize::try_new(theirs.blocksize())?);
        let nested = matches!(theirs.scales(), Scales::Nested { .. });
        let shape = &source.shape;
        let ours = quantize_bytes(&source.bytes, shape, dtype, code, blocksize, nested, Backend::Cpu)?;
        out.weight(&format!("{case}.weight"), &ours);
        if let Scales::Nested { offset, .. } = theirs.scales() {
            let values = dtype.decode(&source.bytes);
            let around = quantize_with_offset(&values, shape, dtype, code, blocksize, *offset, Backend::Cpu)?;
            out.weight(&format!("{case}.around"), &around);
        }
        out.values(case, &theirs);
    }
    Ok(serialize_to_file(out.0, None, outputs)?)
}

/// Tensors by name.
#[derive(Default)]
struct Outputs(Vec<(String, Plain)>);

impl Outputs {
    fn bytes(&mut self, name: String, dtype: Dtype, bytes: Vec<u8>) {
        self.0.push((name, Plain { dtype, shape: [bytes.len() * 8 / dtype.bitsize()], bytes }));
    }

    fn floats(&mut self, name: String, values: &[f32]) {
        self.bytes(name, Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect());
    }

    /// A weight under the keys that bitsandbytes has for it.
    fn weight(&mut self, name: &str, weight: &Quantized) {
        self.bytes(name.to_owned(), Dtype::U8, weight.packed().to_vec());
        match weight.scales() {
            Scales::Single(absmax) => self.floats(format!("{name}.absmax"), absmax),
            Scales::Nested { codes, map, absmax, .. } => {
                self.bytes(format!("{name}.absmax"), Dtype::U8, codes.to_vec());
                self.floats(format!("{name}.nested_absmax"), absmax);
                self.floats(format!("{name}.nested_quant_map"), map.as_slice());
            }
            Scales::Affine { .. } => {} // bitsandbytes has no such code
        }
        self.floats(format!("{name}.quant_map"), weight.values());
        let state = format!("{name}.quant_state.bitsandbytes__{}", weight.code().as_str());
        self.bytes(state, Dtype::U8, weight.state().encode());
    }

    fn values(&mut self, case: &str, weight: &Quantized) {
        let (mut wide, mut narrow) = (vec![0f32; weight.elements()], vec![bf16::ZERO; weight.elements()]);
        weight.dequantize_f32(&mut wide);
        weight.dequantize_bf16(&mut narrow);
        let narrow: Vec<u8> = narrow.iter().flat_map(|value| value.to_le_bytes()).collect();
        let own = format!("{case}.dequantized");
        match weight.dtype() {
            Float::F32 => self.floats(own, &wide),
            Float::Bf16 => self.bytes(own, Dtype::BF16, narrow.clone()),
            // Exact: the values are rounded to this type already.
            Float::F16 => {
                let halves = wide.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes());
                self.bytes(own, Dtype::F16, halves.collect());
            }
        }
        self.bytes(format!("{case}.bf16"), Dtype::BF16, narrow);
    }
}

/// A tensor of one dimension.
struct Plain {
    dtype: Dtype,
    shape: [usize; 1],
    bytes: Vec<u8>,
}

impl View for Plain {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes).into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
