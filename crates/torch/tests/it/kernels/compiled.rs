//! NVRTC takes the kernels for every card that is promised, and keeps them in registers. It needs no card for that.

use std::path::PathBuf;

use tailor_torch::kernels::nvrtc::Nvrtc;
use tailor_torch::kernels::source;

/// NVRTC of the tests' own set; `None` where the run has none and may do without.
fn nvrtc() -> Option<Nvrtc> {
    let Some(file) = std::env::var_os("TAILOR_TEST_NVRTC").map(PathBuf::from) else {
        let line = "skipped: TAILOR_TEST_NVRTC names no libnvrtc (cargo xtask test fetches one)";
        assert!(
            std::env::var("TAILOR_TEST_REQUIRE").as_deref() != Ok("1"),
            "{line}; TAILOR_TEST_REQUIRE=1 forbids that"
        );
        eprintln!("{line}");
        return None;
    };
    Some(Nvrtc::open_file(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())))
}

fn compiles_without_spills(architecture: &str) {
    let Some(nvrtc) = nvrtc() else { return };
    let compiled =
        nvrtc.compile(&source::all(), architecture, &["--ptxas-options=-v"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(&compiled.cubin[..4], b"\x7fELF", "a cubin is an ELF file");
    for kernel in source::KERNELS {
        let symbol = [b".text.".as_slice(), kernel.as_bytes(), b"\0"].concat();
        assert!(compiled.cubin.windows(symbol.len()).any(|bytes| bytes == symbol), "{kernel} is in the cubin");
        let part = compiled.log.split(&format!("Function properties for {kernel}\n")).nth(1);
        let part = part.unwrap_or_else(|| panic!("nothing is said of {kernel}:\n{}", compiled.log));
        let line = part.lines().next().unwrap_or_default();
        assert!(line.contains("0 bytes spill stores, 0 bytes spill loads"), "{kernel} on {architecture}: {line}");
        let registers = part.split("Used ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
        let registers = registers.unwrap_or_else(|| panic!("registers of {kernel}:\n{part}"));
        // 65,536 a multiprocessor: up to 64 leave 1024 threads side by side. What has sums for many rows gets by with fewer.
        let most = match kernel {
            "tailor_product_32" => 176,
            "tailor_product_16" | "tailor_attend_pages" => 128,
            "tailor_product_8" => 85,
            _ => 64,
        };
        assert!(registers <= most, "{kernel} on {architecture} takes {registers} registers");
    }
}

#[test]
fn kernels_compile_for_ampere_without_spills() {
    compiles_without_spills("sm_80");
}

#[test]
fn kernels_compile_for_ada_without_spills() {
    compiles_without_spills("sm_89");
}

#[test]
fn kernels_compile_for_hopper_without_spills() {
    compiles_without_spills("sm_90");
}

#[test]
fn a_mistake_in_a_kernel_is_told_by_line() {
    let Some(nvrtc) = nvrtc() else { return };
    let error = nvrtc.compile("__global__ void k() { nonsense; }", "sm_90", &[]).map(|_| ()).expect_err("refused");
    assert!(error.contains("tailor.cu(1)") && error.contains("nonsense"), "{error}");
}

#[test]
fn the_list_of_kernels_is_complete() {
    // Every launch of the shim names kernels of the list, whose endings it puts together.
    let shim = [
        include_str!("../../../shim/device_linear.cpp"),
        include_str!("../../../shim/device_layers.cpp"),
        include_str!("../../../shim/device_adamw.cpp"),
        include_str!("../../../shim/device_step.cpp"),
    ];
    let named =
        shim.iter().flat_map(|text| text.split('"')).filter(|word| word.starts_with("tailor_") && !word.contains(' '));
    for name in named.filter(|word| !word.contains(".h")) {
        let known =
            source::KERNELS.iter().any(|kernel| *kernel == name || (name.ends_with('_') && kernel.starts_with(name)));
        assert!(known, "{name} is launched and not in the list");
    }
    let text = source::all();
    let written = |kernel: &str| {
        // Macros put endings together.
        let stem =
            ["_bf16", "_f32", "_vec", "_8", "_16", "_32"].iter().fold(kernel.to_owned(), |name, e| name.replace(e, ""));
        text.contains(&stem)
    };
    assert!(source::KERNELS.iter().all(|kernel| written(kernel)));
}
