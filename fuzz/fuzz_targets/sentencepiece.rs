#![no_main]

// As in tokenizer_config: what the library panics at is caught by our parser, not by libFuzzer's hook.
libfuzzer_sys::fuzz_target!(
    init: std::panic::set_hook(Box::new(|_| {})),
    |input: &[u8]| drop(tailor_hostile::sentencepiece(input))
);
