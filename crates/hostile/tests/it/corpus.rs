//! The inputs of the fuzz targets (`fuzz/corpus`: written by `fuzz/make_seeds.py`, or found by a fuzzer), once more without
//! a fuzzer. A panic names its file; what takes the process with it is the last file named on the standard error.

use std::fs;
use std::path::PathBuf;

use tailor_hostile::TARGETS;

fn run_all(name: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let mut files: Vec<_> =
        fs::read_dir(&folder).expect("the corpus").map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    assert!(files.len() >= 15, "{} has {} files", folder.display(), files.len());
    let (mut read, mut refused) = (0, 0);
    for file in &files {
        eprintln!("{}", file.display());
        match (target.run)(&fs::read(file).expect("an input")) {
            Ok(()) => read += 1,
            Err(message) => {
                assert!(!message.is_empty());
                refused += 1;
            }
        }
    }
    assert!(read > 0 && refused > 0, "{name}: {read} read, {refused} refused; the corpus shows one side alone");
}

#[test]
fn every_known_tensor_file_is_read_or_refused() {
    run_all("safetensors");
}

#[test]
fn every_known_index_is_read_or_refused() {
    run_all("index");
}

#[test]
fn every_known_quant_state_is_read_or_refused() {
    run_all("quant_state");
}

#[test]
fn every_known_adapter_is_read_or_refused() {
    run_all("adapter_config");
}

#[test]
fn every_known_tokenizer_is_read_or_refused() {
    run_all("tokenizer_config");
}

#[test]
fn every_known_sentencepiece_model_is_converted_or_refused() {
    run_all("sentencepiece");
}

#[test]
fn every_known_chat_template_is_rendered_or_refused() {
    run_all("chat_template");
}
