//! CUDA's driver API: loading compiled kernels and launching them on libtorch's stream.
//!
//! libtorch works in each card's primary context; so do we. A launch only queues: no call here waits for the GPU.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::Card;
use crate::ffi;
use crate::kernels::nvrtc::Nvrtc;
use crate::kernels::{cache, source};
use crate::library::Library;

type Handle = *mut c_void;

const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const MULTIPROCESSORS: c_int = 16;
const ATTACH_GLOBAL: c_uint = 1;
/// bf16 in hardware.
const LEAST_CAPABILITY: u32 = 80;

/// The functions of libcuda that we call.
struct Driver {
    device_get: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    device_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
    device_memory: unsafe extern "C" fn(*mut usize, c_int) -> c_int,
    device_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    retain_context: unsafe extern "C" fn(*mut Handle, c_int) -> c_int,
    current_context: unsafe extern "C" fn(*mut Handle) -> c_int,
    set_context: unsafe extern "C" fn(Handle) -> c_int,
    load_module: unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int,
    module_function: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int,
    launch: LaunchKernel,
    allocate_managed: unsafe extern "C" fn(*mut u64, usize, c_uint) -> c_int,
    free: unsafe extern "C" fn(u64) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
}

type LaunchKernel = unsafe extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    Handle,
    *const *const c_void,
    *const *const c_void,
) -> c_int;

/// A card with our kernels loaded.
struct Loaded {
    context: Handle,
    /// In the order of [`source::KERNELS`].
    functions: Vec<(CString, Handle)>,
    card: Card,
}

// SAFETY: contexts and functions are handles that the driver lets any thread use.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

const MOST_CARDS: usize = 64;
static DRIVER: OnceLock<Driver> = OnceLock::new();
static CARDS: [OnceLock<Loaded>; MOST_CARDS] = [const { OnceLock::new() }; MOST_CARDS];

/// Opens the driver and takes over launching for tensors on GPUs.
pub fn open() -> Result<(), String> {
    if DRIVER.get().is_some() {
        return Ok(());
    }
    let words = |error: String| format!("no GPU can be used: NVIDIA's driver cannot be opened ({error}); install it");
    let library = Library::open(Path::new("libcuda.so.1"), true).map_err(words)?;
    // SAFETY: the types are those of cuda.h; the names are those that its macros stand for.
    let driver = unsafe {
        let init: unsafe extern "C" fn(c_uint) -> c_int = library.function(c"cuInit").map_err(words)?;
        let driver = Driver {
            device_get: library.function(c"cuDeviceGet")?,
            device_name: library.function(c"cuDeviceGetName")?,
            device_memory: library.function(c"cuDeviceTotalMem_v2")?,
            device_attribute: library.function(c"cuDeviceGetAttribute")?,
            retain_context: library.function(c"cuDevicePrimaryCtxRetain")?,
            current_context: library.function(c"cuCtxGetCurrent")?,
            set_context: library.function(c"cuCtxSetCurrent")?,
            load_module: library.function(c"cuModuleLoadData")?,
            module_function: library.function(c"cuModuleGetFunction")?,
            launch: library.function(c"cuLaunchKernel")?,
            allocate_managed: library.function(c"cuMemAllocManaged")?,
            free: library.function(c"cuMemFree_v2")?,
            error_string: library.function(c"cuGetErrorString")?,
        };
        driver.check("cuInit", init(0))?;
        driver
    };
    DRIVER.get_or_init(|| driver);
    // SAFETY: the launcher is a function of this program.
    unsafe { ffi::tailor_set_launcher(1, Some(launch)) };
    Ok(())
}

fn driver() -> Result<&'static Driver, String> {
    DRIVER.get().ok_or_else(|| "the driver is not open".to_owned())
}

impl Driver {
    fn check(&self, call: &str, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut words = ptr::null();
        // SAFETY: gives a static string, or leaves null for a code that it does not know.
        unsafe { (self.error_string)(code, &mut words) };
        if words.is_null() {
            return Err(format!("{call}: error {code}"));
        }
        // SAFETY: as above.
        Err(format!("{call}: {} ({code})", unsafe { CStr::from_ptr(words) }.to_string_lossy()))
    }

    fn card(&self, index: c_int) -> Result<(c_int, Card), String> {
        let mut device = 0;
        let mut name = [0 as c_char; 128];
        let (mut memory, mut major, mut minor, mut multiprocessors) = (0usize, 0, 0, 0);
        // SAFETY: every pointer is valid for writing, the name for its length.
        unsafe {
            self.check("cuDeviceGet", (self.device_get)(&mut device, index))?;
            self.check("cuDeviceGetName", (self.device_name)(name.as_mut_ptr(), name.len() as c_int - 1, device))?;
            self.check("cuDeviceTotalMem", (self.device_memory)(&mut memory, device))?;
            for (value, attribute) in [
                (&mut major, CAPABILITY_MAJOR),
                (&mut minor, CAPABILITY_MINOR),
                (&mut multiprocessors, MULTIPROCESSORS),
            ] {
                self.check("cuDeviceGetAttribute", (self.device_attribute)(value, attribute, device))?;
            }
        }
        // SAFETY: the last byte is still zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let capability = (major * 10 + minor) as u32;
        Ok((device, Card { name, memory_bytes: memory as u64, capability, multiprocessors: multiprocessors as u32 }))
    }

    /// Makes the context the calling thread's, where it is not already.
    fn enter(&self, context: Handle) -> Result<(), String> {
        let mut current = ptr::null_mut();
        // SAFETY: the pointer is valid for writing; the context is retained to the end of the process.
        unsafe {
            self.check("cuCtxGetCurrent", (self.current_context)(&mut current))?;
            if current == context { Ok(()) } else { self.check("cuCtxSetCurrent", (self.set_context)(context)) }
        }
    }

    fn load(&self, index: usize) -> Result<Loaded, String> {
        let (device, card) = self.card(index as c_int)?;
        if card.capability < LEAST_CAPABILITY {
            let (major, minor) = (card.capability / 10, card.capability % 10);
            return Err(format!(
                "{} has compute capability {major}.{minor}; 8.0 (Ampere) or newer is needed",
                card.name
            ));
        }
        let mut context = ptr::null_mut();
        // SAFETY: the pointer is valid for writing. libtorch uses the same context.
        self.check("cuDevicePrimaryCtxRetain", unsafe { (self.retain_context)(&mut context, device) })?;
        self.enter(context)?;
        let module = self.module(&format!("sm_{}", card.capability))?;
        let functions = source::KERNELS.iter().map(|name| {
            let name = CString::new(*name).map_err(|_| "a kernel's name has a zero".to_owned())?;
            let mut function = ptr::null_mut();
            // SAFETY: the module is loaded; the name is a C string.
            let found = unsafe { (self.module_function)(&mut function, module, name.as_ptr()) };
            self.check(&format!("cuModuleGetFunction {}", name.to_string_lossy()), found)?;
            Ok((name, function))
        });
        Ok(Loaded { context, functions: functions.collect::<Result<_, String>>()?, card })
    }

    /// The kernels in the current context: from the cache, else compiled and put there.
    fn module(&self, architecture: &str) -> Result<Handle, String> {
        let folder = cache::folder();
        let name = format!("{}-{architecture}.cubin", source::digest(&[architecture]));
        let load = |cubin: &[u8]| {
            let mut module = ptr::null_mut();
            // SAFETY: a cubin is an ELF file, which says its own length; it was made by NVRTC, here or before.
            let code = unsafe { (self.load_module)(&mut module, cubin.as_ptr().cast()) };
            self.check("cuModuleLoadData", code).map(|()| module)
        };
        // One that the driver refuses is made again.
        if let Some(module) = cache::find(folder.as_deref(), &name).and_then(|cubin| load(&cubin).ok()) {
            return Ok(module);
        }
        let cubin = Nvrtc::open()?.compile(&source::all(), architecture, &[])?.cubin;
        let module = load(&cubin)?;
        cache::keep(folder.as_deref(), &name, &cubin);
        Ok(module)
    }
}

fn loaded(index: usize) -> Result<&'static Loaded, String> {
    static LOADING: Mutex<()> = Mutex::new(());
    let place = CARDS.get(index).ok_or_else(|| format!("GPU {index}; at most {MOST_CARDS} are known"))?;
    if let Some(loaded) = place.get() {
        return Ok(loaded);
    }
    let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = place.get() {
        return Ok(loaded);
    }
    let loaded = driver()?.load(index)?;
    Ok(place.get_or_init(|| loaded))
}

pub fn prepare(index: usize) -> Result<Card, String> {
    Ok(loaded(index)?.card.clone())
}

/// What the shim calls for every launch.
extern "C" fn launch(launch: *const ffi::Launch, message: *mut c_char, room: usize) -> i32 {
    // SAFETY: the shim's structure lives through the call.
    let launched = try_launch(unsafe { &*launch });
    let Err(error) = launched else { return 0 };
    // SAFETY: the buffer has this much room.
    unsafe { ffi::fill_message(message, room, &error) };
    1
}

fn try_launch(launch: &ffi::Launch) -> Result<(), String> {
    let driver = driver()?;
    let card = loaded(usize::try_from(launch.device).unwrap_or(usize::MAX))?;
    // SAFETY: the shim gives a C string.
    let name = unsafe { CStr::from_ptr(launch.kernel) };
    let known = card.functions.iter().find(|(known, _)| known.as_c_str() == name);
    let (_, function) = known.ok_or_else(|| "there is no such kernel".to_owned())?;
    driver.enter(card.context)?;
    let (blocks, threads) = (launch.blocks, launch.threads);
    // SAFETY: the arguments' types are the kernel's own (launch in common.h); the driver copies them before it returns.
    let code = unsafe {
        (driver.launch)(*function, blocks, 1, 1, threads, 1, 1, 0, launch.stream, launch.arguments, ptr::null())
    };
    driver.check("cuLaunchKernel", code)
}

/// Memory that moves between host and GPU page by page, as it is used.
pub fn allocate_managed(index: usize, bytes: usize) -> Result<*mut c_void, String> {
    let driver = driver()?;
    driver.enter(loaded(index)?.context)?;
    let mut address = 0u64;
    // SAFETY: the pointer is valid for writing.
    let code = unsafe { (driver.allocate_managed)(&mut address, bytes, ATTACH_GLOBAL) };
    driver.check("cuMemAllocManaged", code).map_err(|error| format!("out of memory: {bytes} bytes: {error}"))?;
    Ok(address as *mut c_void)
}

/// Frees what [`allocate_managed`] gave; the driver waits until no kernel uses it.
pub extern "C" fn free_managed(data: *mut c_void) {
    if let Some(driver) = DRIVER.get() {
        // SAFETY: the address is of one allocation, freed once.
        unsafe { (driver.free)(data as u64) };
    }
}
