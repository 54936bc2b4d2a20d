//! Holds the device thread of a program where it is, while every other thread goes on: `tests/hang/hang.c`, loaded with it.

use std::process::Command;

use tailor_testkit::TempDir;

use super::process::repository;

pub struct Hang {
    library: String,
    /// While it is there the thread stands still.
    file: String,
    _folder: TempDir,
}

impl Hang {
    /// Built by the C compiler that Rust links with.
    pub fn build() -> Self {
        let folder = TempDir::new();
        let (source, library) = (repository().join("tests/hang/hang.c"), folder.join("hang.so"));
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(&library).arg(source).status();
        assert!(built.expect("a C compiler").success());
        let (library, file) = (library.display().to_string(), folder.join("hang").display().to_string());
        Self { library, file, _folder: folder }
    }

    /// The environment of a program that can be held.
    pub fn environment(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", self.library.as_str()), ("TAILOR_TEST_HANG", self.file.as_str())]
    }

    pub fn hold(&self) {
        std::fs::write(&self.file, "").expect("hangs it");
    }

    pub fn let_go(&self) {
        std::fs::remove_file(&self.file).expect("lets it go");
    }
}
