//! NVIDIA's driver as a [`Device`], opened when the program runs.
//!
//! Nothing of CUDA is linked: driver and cuBLASLt are looked for when a device is asked for, so one program runs with and without
//! them. One stream, one memory pool that keeps what it has; modules are loaded once, at their first launch, functions looked up once. Not yet run on
//! a GPU.

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use candle_core::{Result, bail};
use cudarc::driver::{
    result::{self, DriverError},
    sys::{
        self, CUcontext, CUdevice_attribute as Attribute, CUfunction, CUfunction_attribute, CUmemPool_attribute,
        CUmodule, CUresult, CUstream,
    },
};

use self::blas::Blas;
use super::{Arg, Device, Gpu, Launch, Matmul, NoGpu};

mod blas;

/// The kernels, by the stems of their files, as `build.rs` compiled them.
static MODULES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// Oldest architecture with machine code here, as major and minor.
const OLDEST: (i32, i32) = (8, 0);

/// Shared memory that a kernel may use without asking.
const PLAIN_SHARED_BYTES: usize = 48 << 10;

struct Cuda {
    name: String,
    multiprocessors: usize,
    context: CUcontext,
    stream: CUstream,
    modules: Mutex<HashMap<&'static str, CUmodule>>,
    functions: Mutex<HashMap<&'static str, Function>>,
    blas: OnceLock<std::result::Result<Mutex<Blas>, String>>,
}

#[derive(Clone, Copy)]
struct Function {
    function: CUfunction,
    /// Most shared memory that it was allowed so far.
    shared_bytes: usize,
}

// SAFETY: handles of the driver, which may be used from any thread once the context is current there ([`Cuda::enter`]); tables are behind
// locks.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl fmt::Debug for Cuda {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

/// Opens the first GPU (of those that `CUDA_VISIBLE_DEVICES` leaves).
pub(super) fn open() -> std::result::Result<Gpu, NoGpu> {
    // SAFETY: only opens the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoGpu::NoDriver);
    }
    let failed = |error: DriverError| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_STUB_LIBRARY => NoGpu::NoDevice,
        _ => NoGpu::Failed(describe(&error)),
    };
    result::init().map_err(failed)?;
    if result::device::get_count().map_err(failed)? == 0 {
        return Err(NoGpu::NoDevice);
    }
    let device = result::device::get(0).map_err(failed)?;
    // SAFETY: a device that `get` returned.
    let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) }.map_err(failed);
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let model = result::device::get_name(device).map_err(failed)?;
    if capability < OLDEST {
        return Err(NoGpu::TooOld { model, major: capability.0, minor: capability.1 });
    }
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    // SAFETY: the device is valid, and the context is kept for the life of the process.
    let (context, stream, bytes) = unsafe {
        let context = result::primary_ctx::retain(device).map_err(failed)?;
        result::ctx::set_current(context).map_err(failed)?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed)?;
        let pool = result::device::get_default_mem_pool(device).map_err(failed)?;
        // Without it every synchronisation hands the memory back to the system.
        let mut threshold = u64::MAX;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()).map_err(failed)?;
        (context, stream, result::device::total_mem(device).map_err(failed)?)
    };
    let mut driver = 0;
    // SAFETY: writes one number.
    let driver = match unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result() {
        Ok(()) => format!("CUDA {}.{}", driver / 1000, driver % 1000 / 10),
        Err(_) => "of unknown version".to_owned(),
    };
    let name = format!(
        "{model} (sm_{}{}, {:.1} GiB, driver for {driver})",
        capability.0,
        capability.1,
        bytes as f64 / f64::from(1u32 << 30)
    );
    Ok(Arc::new(Cuda {
        name,
        multiprocessors: usize::try_from(multiprocessors).unwrap_or(1),
        context,
        stream,
        modules: Mutex::default(),
        functions: Mutex::default(),
        blas: OnceLock::new(),
    }))
}

impl Cuda {
    /// Makes the device current on this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as the process.
        unsafe { result::ctx::set_current(self.context) }.or_else(|error| failed("the GPU's context", &error))
    }

    fn function(&self, module: &'static str, kernel: &'static str, shared_bytes: usize) -> Result<CUfunction> {
        let mut functions = locked(&self.functions);
        let found = match functions.get(kernel) {
            Some(found) => *found,
            None => Function { function: self.load(module, kernel)?, shared_bytes: PLAIN_SHARED_BYTES },
        };
        let allowed = found.shared_bytes.max(shared_bytes);
        if allowed > found.shared_bytes {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(allowed).unwrap_or(i32::MAX);
            // SAFETY: a function of a module that is never unloaded.
            if let Err(error) = unsafe { result::function::set_function_attribute(found.function, attribute, bytes) } {
                return failed(&format!("{kernel} wants {allowed} bytes of shared memory"), &error);
            }
        }
        functions.insert(kernel, Function { shared_bytes: allowed, ..found });
        Ok(found.function)
    }

    fn load(&self, stem: &'static str, kernel: &'static str) -> Result<CUfunction> {
        let mut modules = locked(&self.modules);
        let module = match modules.get(stem) {
            Some(module) => *module,
            None => {
                let Some((_, image)) = MODULES.iter().find(|(name, _)| *name == stem) else {
                    bail!("there is no CUDA module `{stem}`")
                };
                // SAFETY: a container that nvcc wrote.
                match unsafe { result::module::load_data(image.as_ptr().cast()) } {
                    Ok(module) => module,
                    Err(error) => {
                        return failed(&format!("the kernels of `{stem}` (made for drivers from 580 on)"), &error);
                    }
                }
            }
        };
        modules.insert(stem, module);
        let name = CString::new(kernel).map_err(candle_core::Error::wrap)?;
        // SAFETY: the module is loaded and stays.
        unsafe { result::module::get_function(module, name) }.or_else(|error| failed(kernel, &error))
    }
}

impl Device for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn free_bytes(&self) -> Result<usize> {
        self.enter()?;
        result::mem_get_info().map(|(free, _)| free).or_else(|error| failed("the GPU's memory", &error))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        // SAFETY: all work goes to one stream; the driver does not take 0 bytes.
        match unsafe { result::malloc_async(self.stream, bytes.max(1)) } {
            Ok(address) => Ok(address),
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = result::mem_get_info().map_or(0, |(free, _)| free);
                bail!(
                    "the memory of {} is full: {} MiB were asked for, {} MiB are free; lower max_num_seqs or the batch",
                    self.name,
                    bytes.div_ceil(1 << 20),
                    free >> 20
                )
            }
            Err(error) => failed("an allocation on the GPU", &error),
        }
    }

    fn free(&self, address: u64, _: usize) {
        // After a fault of the device nothing can be given back, and the fault has been reported where it happened.
        // SAFETY: allocated on this stream, and nobody holds it any more.
        let _ = self.enter().map(|()| unsafe { result::free_async(address, self.stream) });
    }

    unsafe fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        // From ordinary memory the driver copies the bytes away before it returns.
        // SAFETY: by the trait's contract.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream) }
            .or_else(|error| failed("a copy to the GPU", &error))
    }

    unsafe fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: by the trait's contract; the bytes are borrowed until the stream is done.
        unsafe {
            result::memcpy_dtoh_async(bytes, address, self.stream)
                .and_then(|()| result::stream::synchronize(self.stream))
        }
        .or_else(|error| failed("a copy from the GPU", &error))
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: by the trait's contract.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream) }
            .or_else(|error| failed("clearing memory of the GPU", &error))
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        self.enter()?;
        let function = self.function(launch.module, launch.kernel, launch.shared_bytes)?;
        let mut values: Vec<u64> = launch.args.iter().map(word).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
        let [x, y, z] = launch.blocks.map(|count| count as u32);
        let (threads, shared_bytes) = (launch.threads as u32, launch.shared_bytes as u32);
        // SAFETY: by the trait's contract; the driver copies the arguments.
        unsafe { result::launch_kernel(function, (x, y, z), (threads, 1, 1), shared_bytes, self.stream, &mut pointers) }
            .or_else(|error| failed(launch.kernel, &error))
    }

    unsafe fn matmul(&self, product: &Matmul) -> Result<()> {
        self.enter()?;
        match self.blas.get_or_init(|| Blas::open().map(Mutex::new)) {
            // SAFETY: by the trait's contract.
            Ok(blas) => unsafe { locked(blas).multiply(product, self.stream) },
            Err(reason) => bail!("{reason}"),
        }
    }

    fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as the process.
        unsafe { result::stream::synchronize(self.stream) }.or_else(|error| failed("work on the GPU", &error))
    }
}

/// An argument's bits, from the first byte on.
fn word(arg: &Arg) -> u64 {
    match arg {
        Arg::Pointer(address) => *address,
        // Little-endian, as every host of CUDA is: the value is the first four bytes.
        Arg::Int(value) => u64::from(value.cast_unsigned()),
        Arg::Float(value) => u64::from(value.to_bits()),
    }
}

/// A poisoned table is still right: every change to one is a single insertion.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn describe(error: &DriverError) -> String {
    let name = error.error_name().map_or("an unknown error".into(), |it| it.to_string_lossy());
    let text = error.error_string().map_or("".into(), |it| it.to_string_lossy());
    format!("{name}: {text}")
}

fn failed<T>(what: &str, error: &DriverError) -> Result<T> {
    bail!("{what}: {}", describe(error))
}
