//! The kernels on the host, for tests and for debugging: the same text, compiled by the machine's C++ compiler behind an
//! emulation of blocks, threads, barriers and shuffles (`kernels/host/emulator.h`). Correct and slow.

use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;
use std::{env, fs};

use super::{cache, source};
use crate::library::Library;
use crate::{Error, Result, ffi};

// Not fused, so that the bits are those that the card is told to make; not aliased by type, as CUDA is not.
const OPTIONS: [&str; 7] = ["-std=c++17", "-O2", "-shared", "-fPIC", "-w", "-ffp-contract=off", "-fno-strict-aliasing"];

type Launch = unsafe extern "C" fn(*const c_char, u32, u32, *const *const c_void, u32, *mut c_char, usize) -> i32;

static LAUNCH: OnceLock<std::result::Result<Launch, String>> = OnceLock::new();

/// From here on, functions of [`crate::device`] run for CPU tensors, by the kernels that a GPU would run. Whoever loads
/// a base afterwards gets its weights as a GPU's would be. May be called any number of times.
///
/// # Errors
/// There is no C++ compiler (`CXX`, else `c++`), or it refuses the text.
pub fn emulate_on_host() -> Result<()> {
    let outcome = LAUNCH.get_or_init(|| {
        let library = Library::open(&compiled()?, false)?;
        // SAFETY: the type is that of the function in `text`.
        unsafe { library.function::<Launch>(c"tailor_host_launch") }
    });
    outcome.as_ref().map_err(|error| Error::Gpu(format!("kernels on the host: {error}")))?;
    // SAFETY: the launcher is a function of this program.
    unsafe { ffi::tailor_set_launcher(0, Some(launch)) };
    Ok(())
}

/// The variable that names the GPU on which tests try the kernels.
pub const TEST_VARIABLE: &str = "TAILOR_TEST_DEVICE";

/// Where tests try the kernels: on the GPU that [`TEST_VARIABLE`] names, as `TAILOR_DEVICE` does, else on the host.
///
/// # Errors
/// As [`emulate_on_host`] and [`crate::gpu::device`].
pub fn test_device() -> Result<tch::Device> {
    match env::var(TEST_VARIABLE) {
        Ok(name) if !name.is_empty() => crate::gpu::device(&name),
        _ => emulate_on_host().map(|()| tch::Device::Cpu),
    }
}

extern "C" fn launch(launch: *const ffi::Launch, message: *mut c_char, room: usize) -> i32 {
    let Some(Ok(host)) = LAUNCH.get() else { return 1 };
    // SAFETY: the shim's structure and what it points to live through the call, and so does the buffer.
    unsafe {
        let launch = &*launch;
        host(launch.kernel, launch.blocks, launch.threads, launch.arguments, launch.argument_count, message, room)
    }
}

fn text() -> String {
    let kernels = source::KERNELS.map(|name| format!("    TAILOR_KERNEL({name}),\n")).concat();
    format!(
        "{}\n{}\nstatic const host::Kernel kernels[] = {{\n{kernels}}};\n\
         extern \"C\" int32_t tailor_host_launch(const char* name, unsigned blocks, unsigned threads,\n\
                                               void* const* values, unsigned count, char* message, size_t room) {{\n\
           return host::launch(kernels, sizeof(kernels) / sizeof(kernels[0]), name, blocks, threads, values, count,\n\
                               message, room);\n}}\n",
        source::EMULATOR,
        source::all()
    )
}

/// The library's path; compiled once for each text, and kept.
fn compiled() -> std::result::Result<PathBuf, String> {
    let compiler = env::var("CXX").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".to_owned());
    let folder = cache::folder().unwrap_or_else(|| env::temp_dir().join("tailor-kernels"));
    let text = text();
    let digest = source::digest(&[&text, &compiler, &OPTIONS.join(" ")]);
    let library = folder.join(format!("{digest}-host.so"));
    if library.exists() {
        return Ok(library);
    }
    let disk = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(&folder).map_err(|error| disk(&folder, error))?;
    let partial = folder.join(format!("{digest}-host.{}", process::id()));
    let (source, built) = (
        partial.with_extension(format!("{}.cpp", process::id())),
        partial.with_extension(format!("{}.so", process::id())),
    );
    fs::write(&source, text).map_err(|error| disk(&source, error))?;
    let output = Command::new(&compiler).args(OPTIONS).arg(&source).arg("-o").arg(&built).output();
    let _ = fs::remove_file(&source);
    let output =
        output.map_err(|error| format!("cannot run the C++ compiler {compiler} (CXX names another): {error}"))?;
    if !output.status.success() {
        return Err(format!("{compiler} refuses the kernels:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    // Whoever else compiled it meanwhile made the same.
    fs::rename(&built, &library).map_err(|error| disk(&library, error))?;
    Ok(library)
}
