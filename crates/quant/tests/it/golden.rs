//! Each case of tests/golden/make_quant.py: quantising gives bitsandbytes' bytes, dequantising its values.

use half::{bf16, f16};
use tailor_quant::{Backend, BlockSize, Checkpoint, Code, Float, Quantized, Scales, quantize, quantize_with_offset};

use crate::golden_folder;

fn cases() -> (Checkpoint, Vec<String>) {
    let checkpoint = Checkpoint::open(&golden_folder("quant")).unwrap();
    let names = checkpoint.names().filter_map(|name| name.strip_suffix(".input").map(str::to_owned)).collect();
    (checkpoint, names)
}

/// The source of a case, quantised as bitsandbytes was told to, around its offset.
fn ours(checkpoint: &Checkpoint, case: &str, theirs: &Quantized, backend: Backend) -> Quantized {
    let source = checkpoint.tensor(&format!("{case}.input")).unwrap();
    let dtype = source.float().unwrap();
    let values = dtype.decode(&source.bytes);
    let blocksize = BlockSize::try_new(theirs.blocksize()).unwrap();
    match theirs.scales() {
        Scales::Nested { offset, .. } => {
            quantize_with_offset(&values, &source.shape, dtype, theirs.code(), blocksize, *offset, backend).unwrap()
        }
        _ => quantize(&values, &source.shape, dtype, theirs.code(), blocksize, false, backend).unwrap(),
    }
}

#[test]
fn quantising_gives_bitsandbytes_bytes() {
    let (checkpoint, names) = cases();
    assert_eq!(names.len(), 10);
    for case in names {
        let theirs = checkpoint.quantized(&format!("{case}.weight")).unwrap().unwrap();
        let ours = ours(&checkpoint, &case, &theirs, Backend::Cpu);
        assert_eq!(ours.packed().to_vec(), theirs.packed().to_vec(), "{case}: packed numbers");
        assert_eq!(ours.state().encode(), theirs.state().encode(), "{case}: quant_state");
        assert_eq!(ours.values().map(f32::to_bits), theirs.values().map(f32::to_bits), "{case}: code book");
        match (ours.scales(), theirs.scales()) {
            (Scales::Single(ours), Scales::Single(theirs)) => assert_eq!(ours, theirs, "{case}: absmax"),
            (
                Scales::Nested { codes, map, absmax, .. },
                Scales::Nested { codes: their_codes, map: their_map, absmax: their_absmax, .. },
            ) => {
                assert_eq!(map, their_map, "{case}: dynamic map");
                assert_eq!(absmax, their_absmax, "{case}: nested absmax");
                assert_eq!(codes.to_vec(), their_codes.to_vec(), "{case}: 8-bit numbers");
            }
            _ => panic!("{case}: scales of another kind"),
        }
    }
}

#[test]
fn state_bytes_are_bitsandbytes_own() {
    let (checkpoint, names) = cases();
    for case in names {
        let theirs = checkpoint.quantized(&format!("{case}.weight")).unwrap().unwrap();
        let key = format!("{case}.weight.quant_state.bitsandbytes__{}", theirs.code().as_str());
        let stored = checkpoint.tensor(&key).unwrap().bytes;
        assert_eq!(String::from_utf8(theirs.state().encode()).unwrap(), String::from_utf8(stored.to_vec()).unwrap());
    }
}

#[test]
fn cuda_rounding_of_scales_follows_the_midpoints() {
    let (checkpoint, names) = cases();
    for case in names {
        let Ok(nearest) = checkpoint.tensor(&format!("{case}.nearest")) else { continue };
        let theirs = checkpoint.quantized(&format!("{case}.weight")).unwrap().unwrap();
        let ours = ours(&checkpoint, &case, &theirs, Backend::Cuda);
        let Scales::Nested { codes, .. } = ours.scales() else { panic!("{case} is nested") };
        assert_eq!(codes.to_vec(), nearest.bytes.to_vec(), "{case}");
    }
}

#[test]
fn our_offset_is_theirs() {
    let (checkpoint, names) = cases();
    for case in names {
        let theirs = checkpoint.quantized(&format!("{case}.weight")).unwrap().unwrap();
        let Scales::Nested { offset: their_offset, .. } = theirs.scales() else { continue };
        let source = checkpoint.tensor(&format!("{case}.input")).unwrap();
        let dtype = source.float().unwrap();
        let blocksize = BlockSize::try_new(theirs.blocksize()).unwrap();
        let values = dtype.decode(&source.bytes);
        let ours = quantize(&values, &source.shape, dtype, theirs.code(), blocksize, true, Backend::Cpu).unwrap();
        let Scales::Nested { offset, .. } = ours.scales() else { panic!("{case} is nested") };
        assert_eq!(offset.to_bits(), their_offset.to_bits(), "{case}: {offset} and {their_offset}");
    }
}

#[test]
fn dequantising_gives_bitsandbytes_values() {
    let (checkpoint, names) = cases();
    for case in names {
        let weight = checkpoint.quantized(&format!("{case}.weight")).unwrap().unwrap();
        let expected = checkpoint.tensor(&format!("{case}.dequantized")).unwrap();
        let expected_values = expected.float().unwrap().decode(&expected.bytes);
        let mut values = vec![0f32; weight.elements()];
        weight.dequantize_f32(&mut values);
        let bits = |values: &[f32]| values.iter().map(|&x| (x + 0.0).to_bits()).collect::<Vec<_>>(); // -0 as 0
        assert_eq!(bits(&values), bits(&expected_values), "{case}");

        let mut narrow = vec![bf16::ZERO; weight.elements()];
        weight.dequantize_bf16(&mut narrow);
        let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        assert_eq!(narrow, rounded, "{case}");
        if weight.dtype() == Float::F16 {
            assert!(values.iter().all(|&x| f16::from_f32(x).to_f32() == x), "{case}: rounded to its own type");
        }
        assert!(weight.code() != Code::Uniform4);
    }
}
