//! Compiles the C++ shim against libtorch's headers and links what uses it. No CUDA toolkit is needed: kernels are compiled
//! where they run.

/// `host.cpp` and `gpu.cpp` gather what shares its headers, whose compilation takes longest by far.
const SOURCES: [&str; 5] = ["shim/host.cpp", "shim/gpu.cpp", "shim/c10d.cpp", "shim/pool.cpp", "shim/parallel.cpp"];

fn main() {
    println!("cargo::rerun-if-changed=shim");
    println!("cargo::rerun-if-changed=kernels/params.h");
    let mut build = cc::Build::new();
    // The kernels' loops become vector instructions at this level, whatever the profile; where comparing might trap only with masks,
    // which AVX2 lacks. Without OpenMP's flag libtorch's headers make one thread of `parallel_for`.
    build
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .flag_if_supported("-fno-math-errno")
        .flag_if_supported("-fno-trapping-math")
        .flag_if_supported("-fopenmp")
        .warnings(false)
        .files(SOURCES);
    // For the names of Gloo's types, which libtorch's headers mention and do not bring.
    build.include("shim");
    for folder in tailor_torch_link::include_folders() {
        build.flag("-isystem").flag(folder.display().to_string());
    }
    build.compile("tailor_shim");
    tailor_torch_link::emit();
}
