//! NVRTC, NVIDIA's compiler as a library: from the kernels' text to a cubin for one architecture. Needs no card.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use crate::library::{Library, folder_of_loaded};

/// The variable that names `libnvrtc.so` where it lies elsewhere than beside libtorch.
pub const VARIABLE: &str = "TAILOR_NVRTC";

/// Results are those of the CPU's implementation to the bit where that is promised, so no multiply and add is fused.
const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

type Program = *mut c_void;

/// NVRTC, opened.
pub struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    /// As `13.0`.
    pub version: String,
}

/// What came of a compilation.
pub struct Compiled {
    pub cubin: Vec<u8>,
    /// What compiler and assembler said: with `--ptxas-options=-v` each kernel's registers and spills.
    pub log: String,
}

impl Nvrtc {
    /// From the file that `TAILOR_NVRTC` names, else from where the loader looks, else from the places beside libtorch
    /// where PyTorch's wheels and archives have it.
    ///
    /// # Errors
    /// It is nowhere, with what was tried last and the remedy.
    pub fn open() -> Result<Self, String> {
        let remedy = format!("it is part of the CUDA set of libtorch; {VARIABLE} may name the file libnvrtc.so.13");
        if let Some(file) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
            let file = PathBuf::from(file);
            return Self::open_file(&file).map_err(|error| format!("{VARIABLE} is {}: {error}", file.display()));
        }
        let mut last = String::new();
        for file in candidates() {
            match Self::open_file(&file) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => last = error,
            }
        }
        Err(format!("NVRTC cannot be opened ({last}); {remedy}"))
    }

    /// # Errors
    /// The loader's words; a function that is missing.
    pub fn open_file(file: &Path) -> Result<Self, String> {
        // It opens its built-in functions by name alone; where they lie beside it, they are in the process by then.
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("libnvrtc-builtins.so") {
                    let _ = Library::open(&entry.path(), true);
                }
            }
        }
        let library = Library::open(file, false)?;
        // SAFETY: the types are those of nvrtc.h.
        unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = library.function(c"nvrtcVersion")?;
            let (mut major, mut minor) = (0, 0);
            version(&mut major, &mut minor);
            Ok(Self {
                create: library.function(c"nvrtcCreateProgram")?,
                compile: library.function(c"nvrtcCompileProgram")?,
                destroy: library.function(c"nvrtcDestroyProgram")?,
                log_size: library.function(c"nvrtcGetProgramLogSize")?,
                log: library.function(c"nvrtcGetProgramLog")?,
                cubin_size: library.function(c"nvrtcGetCUBINSize")?,
                cubin: library.function(c"nvrtcGetCUBIN")?,
                error_string: library.function(c"nvrtcGetErrorString")?,
                version: format!("{major}.{minor}"),
            })
        }
    }

    /// `architecture` as `sm_90`; `more` are further options.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn compile(&self, source: &str, architecture: &str, more: &[&str]) -> Result<Compiled, String> {
        let source = CString::new(source).map_err(|_| "the source has a zero".to_owned())?;
        let target = format!("--gpu-architecture={architecture}");
        let words = OPTIONS.iter().copied().chain([target.as_str()]).chain(more.iter().copied());
        let options: Vec<CString> = words
            .map(|word| CString::new(word).map_err(|_| format!("the option {word:?} has a zero")))
            .collect::<Result<_, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = ptr::null_mut();
        // SAFETY: strings and arrays live through the calls; no header is given; buffers have the sizes that were asked
        // for; the program is destroyed once.
        unsafe {
            let created =
                (self.create)(&mut program, source.as_ptr(), c"tailor.cu".as_ptr(), 0, ptr::null(), ptr::null());
            self.check(created)?;
            let compiled = (self.compile)(program, options.len() as c_int, options.as_ptr());
            let log = self.bytes(program, self.log_size, self.log);
            let cubin = if compiled == 0 { self.bytes(program, self.cubin_size, self.cubin) } else { Ok(Vec::new()) };
            (self.destroy)(&mut program);
            let log = String::from_utf8_lossy(&log?).trim_end_matches('\0').to_owned();
            self.check(compiled).map_err(|error| format!("{error} for {architecture}:\n{log}"))?;
            let cubin = cubin?;
            if cubin.is_empty() {
                return Err(format!("no cubin for {architecture}: NVRTC {} does not know it", self.version));
            }
            Ok(Compiled { cubin, log })
        }
    }

    unsafe fn bytes(
        &self,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        fill: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the caller's program is alive; the buffer has the length that NVRTC names.
        unsafe {
            self.check(size(program, &mut length))?;
            let mut bytes = vec![0u8; length];
            self.check(fill(program, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }

    fn check(&self, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: gives a static string for every code.
        let words = unsafe { CStr::from_ptr((self.error_string)(code)) };
        Err(format!("NVRTC: {}", words.to_string_lossy()))
    }
}

fn candidates() -> Vec<PathBuf> {
    const NAME: &str = "libnvrtc.so.13";
    let beside = ["libtorch_cuda.so", "libtorch_cpu.so"].into_iter().filter_map(folder_of_loaded);
    let places = beside.flat_map(|lib| {
        // The archive keeps it in lib/; a wheel's torch/lib has nvidia/ two folders up.
        [lib.clone(), lib.join("../../nvidia/cu13/lib"), lib.join("../../nvidia/cuda_nvrtc/lib")]
    });
    let places = places.chain(["/usr/local/cuda/lib64".into()]);
    [PathBuf::from(NAME)].into_iter().chain(places.map(|place: PathBuf| place.join(NAME))).collect()
}
