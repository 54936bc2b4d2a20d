use super::*;

fn nf4(values: &[f32], double: bool) -> Quantized {
    quantize(values, &[values.len()], Float::F32, Code::Nf4, BlockSize::DEFAULT, double, Backend::Cpu).unwrap()
}

#[test]
fn zeros_pack_to_seven_and_come_back_as_zero() {
    let weight = nf4(&[0.0; 128], true);
    assert!(weight.packed().iter().all(|&byte| byte == 0x77));
    let mut back = [1f32; 128];
    weight.dequantize_f32(&mut back);
    assert_eq!(back, [0.0; 128]);
}

#[test]
fn first_value_takes_the_high_nibble() {
    let mut values = [0f32; 64];
    values[0] = 1.0;
    values[1] = -1.0;
    assert_eq!(nf4(&values, false).packed()[0], 0xf0);
}

#[test]
fn an_odd_last_value_pads_with_the_number_of_zero() {
    let weight = nf4(&[1.0, 1.0, -1.0], false);
    assert_eq!(weight.packed().to_vec(), [0xff, 0x07]);
}

#[test]
fn values_of_the_code_book_survive_unchanged() {
    let values: Vec<f32> = (0..64).map(|i| crate::NF4[i % 16]).collect();
    let mut back = vec![0f32; 64];
    nf4(&values, false).dequantize_f32(&mut back);
    assert_eq!(back, values);
}

#[test]
fn uniform_keeps_the_ends_of_a_block() {
    let values: Vec<f32> = (0..64).map(|i| 3.0 + i as f32).collect();
    let weight = quantize(&values, &[64], Float::F32, Code::Uniform4, BlockSize::DEFAULT, false, Backend::Cpu).unwrap();
    let mut back = vec![0f32; 64];
    weight.dequantize_f32(&mut back);
    assert_eq!((back[0], back[63]), (3.0, 66.0));
    assert!(values.iter().zip(&back).all(|(x, y)| (x - y).abs() <= 63.0 / 30.0 + 1e-4));
}

#[test]
fn double_quantisation_costs_4_127_bits_a_parameter() {
    let values: Vec<f32> = (0..1 << 20).map(|i| ((i % 7919) * 31 % 1000) as f32 / 1000.0 - 0.5).collect();
    let weight = nf4(&values, true);
    let bits = (weight.resident_bytes() - 1024) as f64 * 8.0 / values.len() as f64;
    assert!((bits - 4.127).abs() < 1e-3, "{bits}");
}

#[test]
fn values_that_are_not_finite_are_refused_with_their_place() {
    let mut values = [0f32; 64];
    values[5] = f32::NAN;
    let error = quantize(&values, &[64], Float::F32, Code::Nf4, BlockSize::DEFAULT, true, Backend::Cpu).unwrap_err();
    assert!(error.to_string().contains("value 5 is NaN"), "{error}");
}

#[test]
fn block_sizes_bitsandbytes_lacks_are_refused() {
    assert!(BlockSize::try_new(48).unwrap_err().to_string().contains("block size 48"));
    assert_eq!(BlockSize::try_new(4096).unwrap().get(), 4096);
}

#[test]
fn every_instruction_set_quantises_to_the_same_bytes() {
    let mut values: Vec<f32> = (0..4096).map(|i| ((i * 7919) % 4001) as f32 / 2000.0 - 1.0).collect();
    // Exactly on the thresholds, where one side of the comparison decides.
    for code in [Code::Nf4, Code::Fp4] {
        let (thresholds, order) = code.intervals();
        values[0] = 1.0;
        values[1..16].copy_from_slice(&thresholds);
        for blocksize in [32, 64, 4096] {
            for block in values.chunks(blocksize) {
                let run = |instructions: Instructions| {
                    let mut packed = vec![0u8; blocksize / 2];
                    let absmax = quantize_block(instructions, block, blocksize, &thresholds, &order, &mut packed);
                    (absmax, packed)
                };
                let portable = run(Instructions::Portable);
                for instructions in [Instructions::Avx2, Instructions::Avx512] {
                    if instructions.available() {
                        assert_eq!(run(instructions), portable, "{instructions:?}, {code:?}, blocks of {blocksize}");
                    }
                }
            }
        }
    }
}
