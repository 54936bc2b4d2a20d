//! Shared libraries that are opened while the program runs, because they need not be there.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *mut c_char;
}

const RTLD_NOW: c_int = 2;
const RTLD_GLOBAL: c_int = 0x100;

/// An open library. It stays open to the end of the process: what it registered may be called at any time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Library(*mut c_void);

// SAFETY: the handle is only ever given to dlsym, which any thread may call.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// A path, or a name that the loader looks for. `global`: what it defines serves libraries opened later.
    ///
    /// # Errors
    /// The loader's own words.
    pub fn open(name: &Path, global: bool) -> Result<Self, String> {
        let name = CString::new(name.as_os_str().as_encoded_bytes()).map_err(|_| "a name with a zero".to_owned())?;
        // SAFETY: the name is a C string; initialisers of a library that the user has installed run here.
        let library = unsafe { dlopen(name.as_ptr(), RTLD_NOW | if global { RTLD_GLOBAL } else { 0 }) };
        if library.is_null() { Err(last_error()) } else { Ok(Self(library)) }
    }

    /// The address of a function, as the type of a function pointer `F`.
    ///
    /// # Safety
    /// The function must have the type `F`.
    ///
    /// # Errors
    /// The library has none of this name.
    pub unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, String> {
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>(), "F is the type of a function pointer");
        // SAFETY: the handle is open and the name a C string.
        let address = unsafe { dlsym(self.0, name.as_ptr()) };
        if address.is_null() {
            return Err(last_error());
        }
        // SAFETY: the caller vouches for the type, the assertion for the size.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }
}

fn last_error() -> String {
    // SAFETY: gives null, or a string that lives until this thread's next call of the loader.
    let message = unsafe { dlerror() };
    if message.is_null() {
        return "unknown failure of the loader".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

/// Where a library that is already in the process was loaded from: the folder of the first mapped file of this name.
pub(crate) fn folder_of_loaded(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let mut found = path.filter(|path| path.file_name().is_some_and(|file| file == name));
    Some(found.next()?.parent()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_refused_in_the_loaders_words() {
        let error = Library::open(Path::new("/nonexistent/libnothing.so"), false).unwrap_err();
        assert!(error.contains("/nonexistent/libnothing.so"), "{error}");
    }

    #[test]
    fn a_function_that_is_not_there_is_refused_by_name() {
        let library = Library::open(Path::new("libc.so.6"), false).expect("every process has it");
        // SAFETY: nothing is called.
        let error = unsafe { library.function::<extern "C" fn()>(c"tailor_no_such_function") }.unwrap_err();
        assert!(error.contains("tailor_no_such_function"), "{error}");
    }

    #[test]
    fn the_folder_of_libtorch_is_found_in_the_process() {
        let folder = folder_of_loaded("libtorch_cpu.so").expect("the test is linked against it");
        assert!(folder.join("libc10.so").exists(), "{}", folder.display());
    }
}
