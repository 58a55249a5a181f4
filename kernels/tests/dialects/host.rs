//! A GPU that the host plays: sources compiled by its C++ compiler, one fiber per thread.

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::HashMap,
    ffi::c_void,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, LazyLock, Mutex, OnceLock},
    time::SystemTime,
};

use candle_core::{Result, Shape, Tensor, bail};
use glan_kernels::gpu::{Arg, Array, Device, Float, Gpu, Launch, Matmul, MatmulType};
use half::bf16;
use libloading::Library;

/// Orders of blocks and threads that are tried.
const SEEDS: [u64; 3] = [1, 2, 3];
const GUARD: [u8; 64] = [0xa5; 64];
const ALIGNMENT: usize = 256;

type Kernel = unsafe extern "C" fn(*const u32, *const u32, usize, u64, *const *const c_void, u32) -> i32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    Cuda,
    Metal,
}

impl Dialect {
    const ALL: [Dialect; 2] = [Dialect::Cuda, Dialect::Metal];

    fn folder(self) -> &'static str {
        match self {
            Dialect::Cuda => "cuda",
            Dialect::Metal => "metal",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Dialect::Cuda => "cu",
            Dialect::Metal => "metal",
        }
    }
}

#[derive(Debug)]
struct Host {
    dialect: Dialect,
    seed: u64,
    /// Address and size of everything that is allocated.
    live: Mutex<HashMap<u64, usize>>,
}

/// One device for CUDA's dialect, if there is a C++ compiler.
pub fn device(seed: u64) -> Option<Gpu> {
    compiler()?;
    Some(Arc::new(Host { dialect: Dialect::Cuda, seed, live: Mutex::default() }))
}

/// Runs a case on every dialect and in several orders; what it returns must be the same bits in all orders of a dialect.
/// Says so and does nothing where there is no C++ compiler.
pub fn on_every_dialect<T: Float>(case: impl Fn(&Gpu) -> Result<Vec<T>>) -> Result<Vec<Vec<f32>>> {
    if compiler().is_none() {
        println!("skipped: no C++ compiler to run the GPU kernels with");
        return Ok(Vec::new());
    }
    let mut results = Vec::new();
    for dialect in Dialect::ALL {
        let mut first: Option<Vec<f32>> = None;
        for seed in SEEDS {
            let host = Arc::new(Host { dialect, seed, live: Mutex::default() });
            let gpu: Gpu = host.clone();
            let values: Vec<f32> = case(&gpu)?.into_iter().map(Float::to_f32).collect();
            assert!(host.live.lock().unwrap().is_empty(), "{dialect:?}: memory was not given back");
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            match &first {
                Some(first) => assert!(bits(first) == bits(&values), "{dialect:?}: order {seed} gives other bits"),
                None => first = Some(values),
            }
        }
        results.extend(first);
    }
    Ok(results)
}

/// Every dialect's result is within `tolerance` of what is expected, relative to the largest value.
pub fn close<F: Float>(what: &str, results: &[Vec<f32>], expected: &[f32], tolerance: f32) {
    for (dialect, got) in Dialect::ALL.iter().zip(results) {
        let error = worst(got, expected);
        let dtype = std::any::type_name::<F>();
        assert!(error <= tolerance, "{what}, {dialect:?}, {dtype}: {error:e}\n{got:?}\n{expected:?}");
    }
}

/// Worst difference over the largest expected magnitude; NaN where a value is NaN.
pub fn worst(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0f32, |most, value| most.max(value.abs())).max(1e-20);
    got.iter().zip(expected).fold(0f32, |most, (got, expected)| {
        let error = (got - expected).abs() / scale;
        if error.is_nan() || error > most { error } else { most }
    })
}

/// Values between -1 and 1, the same on every run.
pub fn random(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Values as a type can hold them.
pub fn rounded<F: Float>(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| F::from_f32(*value).to_f32()).collect()
}

/// A tensor on the CPU.
pub fn tensor(values: &[f32], shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values.to_vec(), shape.into(), &candle_core::Device::Cpu)
}

/// A CPU tensor's values in order.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Values on the device, in a type.
pub fn array<F: Float>(gpu: &Gpu, values: &[f32]) -> Result<Array<F>> {
    Array::from_slice(gpu, &values.iter().map(|value| F::from_f32(*value)).collect::<Vec<_>>())
}

impl Host {
    fn check_guards(&self, after: &str) -> Result<()> {
        for (&address, &bytes) in self.live.lock().unwrap().iter() {
            // SAFETY: `allocate` made room for the guard.
            let guard = unsafe { std::slice::from_raw_parts((address as *const u8).add(bytes), GUARD.len()) };
            if guard != GUARD {
                bail!("{after} wrote past the end of an array of {bytes} bytes")
            }
        }
        Ok(())
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + GUARD.len(), ALIGNMENT).unwrap()
    }
}

impl Device for Host {
    fn name(&self) -> String {
        format!("the host as {:?}", self.dialect)
    }

    fn multiprocessors(&self) -> usize {
        4
    }

    fn free_bytes(&self) -> Result<usize> {
        Ok(1 << 30)
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        // SAFETY: the guard makes the size positive.
        let address = unsafe { alloc(Self::layout(bytes)) };
        // SAFETY: just allocated; NaN in every float type.
        unsafe {
            address.write_bytes(0xff, bytes);
            address.add(bytes).copy_from_nonoverlapping(GUARD.as_ptr(), GUARD.len());
        }
        self.live.lock().unwrap().insert(address as u64, bytes);
        Ok(address as u64)
    }

    fn free(&self, address: u64, bytes: usize) {
        assert_eq!(self.live.lock().unwrap().remove(&address), Some(bytes));
        // SAFETY: allocated with this layout.
        unsafe { dealloc(address as *mut u8, Self::layout(bytes)) };
    }

    unsafe fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: by the trait's contract.
        unsafe { (address as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: by the trait's contract.
        unsafe { (address as *const u8).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: by the trait's contract.
        unsafe { (address as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        let module = module(self.dialect, launch.module);
        assert!(launch.threads.is_multiple_of(32), "{}: {} threads", launch.kernel, launch.threads);
        let values: Vec<[u8; 8]> = launch.args.iter().map(bytes_of).collect();
        let pointers: Vec<*const c_void> = values.iter().map(|value| value.as_ptr().cast()).collect();
        let (blocks, threads) = (launch.blocks.map(|count| count as u32), [launch.threads as u32, 1, 1]);
        // One grid at a time: the fibers of a module share one scheduler.
        let library = module.lock().unwrap();
        // SAFETY: every kernel of a dialect has this type (`KERNEL` in its header).
        let code = unsafe {
            let kernel: libloading::Symbol<Kernel> = library.get(launch.kernel).unwrap();
            let count = pointers.len() as u32;
            kernel(blocks.as_ptr(), threads.as_ptr(), launch.shared_bytes, self.seed, pointers.as_ptr(), count)
        };
        match code {
            0 => self.check_guards(launch.kernel),
            1 => bail!("{}: threads wait for others that never come", launch.kernel),
            2 => bail!("{} wrote past its {} bytes of shared memory", launch.kernel, launch.shared_bytes),
            3 => bail!("{} does not take {} arguments", launch.kernel, launch.args.len()),
            _ => bail!("{} is not made for {} threads", launch.kernel, launch.threads),
        }
    }

    unsafe fn matmul(&self, product: &Matmul) -> Result<()> {
        let &Matmul { rows, columns, inner, input, output, .. } = product;
        // SAFETY: by the trait's contract.
        let (a, b, mut c) = unsafe {
            let old =
                if product.accumulate { matrix(product.c, rows * columns, output) } else { vec![0.0; rows * columns] };
            (matrix(product.a, rows * inner, input), matrix(product.b, inner * columns, input), old)
        };
        // SAFETY: as above.
        let bias = product.bias.map(|bias| unsafe { matrix(bias, columns, output) });
        for (at, c) in c.iter_mut().enumerate() {
            let (row, column) = (at / columns, at % columns);
            let sum: f32 = (0..inner)
                .map(|i| {
                    let a = if product.a_transposed { a[i * rows + row] } else { a[row * inner + i] };
                    let b = if product.b_transposed { b[column * inner + i] } else { b[i * columns + column] };
                    a * b
                })
                .sum();
            *c += sum + bias.as_ref().map_or(0.0, |bias| bias[column]);
        }
        // SAFETY: as above.
        unsafe {
            match output {
                MatmulType::F32 => (product.c as *mut f32).copy_from_nonoverlapping(c.as_ptr(), c.len()),
                MatmulType::Bf16 => {
                    let narrow: Vec<bf16> = c.iter().map(|it| bf16::from_f32(*it)).collect();
                    (product.c as *mut bf16).copy_from_nonoverlapping(narrow.as_ptr(), narrow.len());
                }
            }
        }
        self.check_guards("a product")
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// A matrix of either type, as f32.
///
/// # Safety
///
/// As many values lie at the address.
unsafe fn matrix(address: u64, len: usize, dtype: MatmulType) -> Vec<f32> {
    // SAFETY: by this function's contract.
    unsafe {
        match dtype {
            MatmulType::F32 => std::slice::from_raw_parts(address as *const f32, len).to_vec(),
            MatmulType::Bf16 => {
                std::slice::from_raw_parts(address as *const bf16, len).iter().map(|it| it.to_f32()).collect()
            }
        }
    }
}

fn bytes_of(arg: &Arg) -> [u8; 8] {
    let mut bytes = [0; 8];
    match arg {
        Arg::Pointer(address) => bytes = address.to_ne_bytes(),
        Arg::Int(value) => bytes[..4].copy_from_slice(&value.to_ne_bytes()),
        Arg::Float(value) => bytes[..4].copy_from_slice(&value.to_ne_bytes()),
    }
    bytes
}

/// A compiled source, made once per process and kept until it or a header changes.
fn module(dialect: Dialect, stem: &'static str) -> &'static Mutex<Library> {
    type Modules = HashMap<(Dialect, &'static str), &'static Mutex<Library>>;
    static MODULES: LazyLock<Mutex<Modules>> = LazyLock::new(Mutex::default);
    let mut modules = MODULES.lock().unwrap();
    modules.entry((dialect, stem)).or_insert_with(|| {
        let built = build(dialect, stem);
        // SAFETY: a library of ours without initialisers.
        Box::leak(Box::new(Mutex::new(unsafe { Library::new(built) }.unwrap())))
    })
}

fn build(dialect: Dialect, stem: &str) -> PathBuf {
    // This file is also part of the program's own tests.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = [package.join("kernels"), package.to_owned()].into_iter().find(|it| it.join("cuda").exists()).unwrap();
    let file = Path::new(stem).with_extension(dialect.extension());
    let mut source = root.join(dialect.folder()).join(&file);
    if !source.exists() {
        source = root.join("host").join(dialect.folder()).join(&file);
    }
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{stem}.{}.so", dialect.folder()));
    let headers = [root.join(dialect.folder()), root.join("host"), root.join("host").join(dialect.folder())];
    let changed = headers
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.is_file() && (*path == source || path.extension().is_none_or(|it| it != dialect.extension()))
        })
        .map(|path| modified(&path).unwrap())
        .max();
    if modified(&built) > changed {
        return built;
    }
    let partial = built.with_extension(format!("{}.partial", std::process::id()));
    let output = Command::new(compiler().unwrap())
        .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"])
        .args(["-Wno-unknown-pragmas", "-Wno-attributes", "-Wno-unused-function", "-Wno-unused-parameter"])
        .arg("-I")
        .arg(root.join("host").join(dialect.folder()))
        .args(["-x", "c++"])
        .arg(&source)
        .arg("-o")
        .arg(&partial)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{}` does not compile:\n{errors}", source.display());
    fs::rename(partial, &built).unwrap();
    built
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok().and_then(|it| it.modified().ok())
}

/// The host's C++ compiler, if it has one.
fn compiler() -> Option<&'static str> {
    static COMPILER: OnceLock<Option<&'static str>> = OnceLock::new();
    *COMPILER.get_or_init(|| {
        let answers = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|it| it.status.success());
        ["c++", "g++", "clang++"].into_iter().find(answers)
    })
}
