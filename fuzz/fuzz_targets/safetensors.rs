#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| drop(tailor_hostile::safetensors(input)));
