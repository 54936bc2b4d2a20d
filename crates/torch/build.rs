//! Compiles the C++ shim against libtorch's headers and links what uses it.

fn main() {
    for file in ["shim/shim.cpp", "shim/pool.cpp", "shim/parallel.cpp", "shim/shim.h"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .warnings(false)
        .file("shim/shim.cpp")
        .file("shim/pool.cpp")
        .file("shim/parallel.cpp");
    for folder in tailor_torch_link::include_folders() {
        build.flag("-isystem").flag(folder.display().to_string());
    }
    build.compile("tailor_shim");
    tailor_torch_link::emit();
}
