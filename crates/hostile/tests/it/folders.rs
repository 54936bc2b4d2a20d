//! A pipe in place of a file: whoever opens it waits for a writer that never comes.

use std::path::Path;
use std::process::Command;

use tailor_peft::{Adapter, Limits};
use tailor_text::Tokenizer;

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
}

#[test]
fn a_pipe_in_an_adapter_s_folder_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    make_pipe(&folder.path().join("adapter_config.json"));
    let error = Adapter::read_dir(folder.path(), &Limits::default()).expect_err("a pipe").to_string();
    assert!(error.contains("adapter_config.json") && error.contains("no regular file"), "{error}");
}

#[test]
fn a_pipe_among_a_tokenizer_s_files_is_refused() {
    for name in ["tokenizer.json", "chat_template.jinja", "tokenizer.model"] {
        let folder = tempfile::tempdir().expect("a folder");
        make_pipe(&folder.path().join(name));
        let error = Tokenizer::open(folder.path()).expect_err("a pipe").to_string();
        assert!(error.contains(name) && error.contains("no regular file"), "{error}");
    }
}
