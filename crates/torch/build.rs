//! Compiles the C++ shim against libtorch's headers and links what uses it. No CUDA toolkit is needed: kernels are compiled
//! where they run.

const SOURCES: [&str; 7] = [
    "shim/shim.cpp",
    "shim/pool.cpp",
    "shim/launch.cpp",
    "shim/device_linear.cpp",
    "shim/device_layers.cpp",
    "shim/device_adamw.cpp",
    "shim/device_memory.cpp",
];
const HEADERS: [&str; 4] = ["shim/shim.h", "shim/device.h", "shim/common.h", "kernels/params.h"];

fn main() {
    for file in SOURCES.iter().chain(&HEADERS) {
        println!("cargo::rerun-if-changed={file}");
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).warnings(false).files(SOURCES);
    for folder in tailor_torch_link::include_folders() {
        build.flag("-isystem").flag(folder.display().to_string());
    }
    build.compile("tailor_shim");
    tailor_torch_link::emit();
}
