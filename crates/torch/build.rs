//! Compiles the C++ shim against libtorch's headers and links what uses it.

fn main() {
    println!("cargo::rerun-if-changed=shim");
    let mut build = cc::Build::new();
    // The kernels' loops become vector instructions at this level, whatever the profile.
    build.cpp(true).std("c++17").opt_level(3).flag_if_supported("-fno-math-errno").warnings(false);
    for file in ["shim", "pool", "parallel", "project", "layers", "attention", "loss", "c10d"] {
        build.file(format!("shim/{file}.cpp"));
    }
    // For the names of Gloo's types, which libtorch's headers mention and do not bring.
    build.include("shim");
    for folder in tailor_torch_link::include_folders() {
        build.flag("-isystem").flag(folder.display().to_string());
    }
    build.compile("tailor_shim");
    tailor_torch_link::emit();
}
