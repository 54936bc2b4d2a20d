//! Folders of tensors, and the parts of a weight in 4 bits.

use std::path::Path;

use tailor_quant::{Bytes, Checkpoint, Code, QuantState, Quantized, Scales, dynamic_map};

use crate::{Refused, parts, refused};

/// Weights of more values are not dequantised: the file has their packed bytes, but the time is better spent on others.
const MAX_VALUES: usize = 1 << 16;

/// `model.safetensors`.
pub fn safetensors(file: &[u8]) -> Refused {
    in_folder(&[("model.safetensors", file)], |folder| use_all(&Checkpoint::open(folder).map_err(refused)?))
}

/// `model.safetensors.index.json`, and `a.safetensors`, the one shard that there is.
pub fn index(input: &[u8]) -> Refused {
    let [index, shard] = parts(input);
    let files = [("model.safetensors.index.json", index), ("a.safetensors", shard)];
    in_folder(&files, |folder| use_all(&Checkpoint::open(folder).map_err(refused)?))
}

/// A `quant_state`, the packed bytes, the scales, and the scales of the scales.
pub fn quant_state(input: &[u8]) -> Refused {
    let [state, packed, scales, nested] = parts(input);
    let state = QuantState::decode(state).map_err(refused)?;
    assert_eq!(QuantState::decode(&state.encode()).as_ref(), Ok(&state), "the state is not what was written");
    let scales = match (&state.nested, state.code) {
        (_, Code::Uniform4) => Scales::Affine { width: floats(scales), minimum: floats(nested) },
        (None, _) => Scales::Single(floats(scales)),
        (Some(own), _) => Scales::Nested {
            codes: Bytes::from(scales.to_vec()),
            map: Box::new(dynamic_map()),
            absmax: floats(nested),
            blocksize: own.blocksize,
            offset: own.offset,
        },
    };
    let weight = Quantized::new(&state, None, Bytes::from(packed.to_vec()), scales).map_err(refused)?;
    assert_eq!(weight.state().shape, state.shape);
    dequantize(&weight);
    Ok(())
}

fn in_folder(files: &[(&str, &[u8])], open: impl FnOnce(&Path) -> Refused) -> Refused {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("a temporary file");
    }
    open(folder.path())
}

fn use_all(checkpoint: &Checkpoint) -> Refused {
    let mut first = Ok(());
    for name in checkpoint.names() {
        let tensor = checkpoint.tensor(name).map_err(refused)?;
        if let Some(float) = tensor.float() {
            assert_eq!(tensor.elements() * float.size(), tensor.bytes.len(), "{name}: bytes and shape differ");
        }
        match checkpoint.quantized(name) {
            Ok(Some(weight)) => dequantize(&weight),
            Ok(None) => {}
            Err(error) => first = first.and(Err(refused(error))),
        }
    }
    first.and(checkpoint.parameters().map(|_| ()).map_err(refused))
}

fn dequantize(weight: &Quantized) {
    if weight.elements() <= MAX_VALUES {
        weight.dequantize_f32(&mut vec![0.0; weight.elements()]);
        weight.dequantize_bf16(&mut vec![Default::default(); weight.elements()]);
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
