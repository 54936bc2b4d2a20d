#![no_main]

// The tokenizers library panics on some malformed files, and our parser catches that on purpose. libFuzzer's hook would
// abort at the panic itself; without it, a panic that nobody catches still ends the process.
libfuzzer_sys::fuzz_target!(
    init: std::panic::set_hook(Box::new(|_| {})),
    |input: &[u8]| drop(tailor_hostile::tokenizer_config(input))
);
