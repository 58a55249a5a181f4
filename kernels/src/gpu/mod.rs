//! The same operations on a GPU: memory of its own, and kernels in CUDA's and Metal's dialect.
//!
//! An op is four files of one stem: the op on the CPU (`../OP.rs`, which defines it), `kernels/cuda/OP.cu`,
//! `kernels/metal/OP.metal`, and here what checks shapes and launches. A launch is a name, a grid and a list of
//! arguments ([`Launch`]), the same in every dialect; [`Device`] is all that a dialect's driver has to offer. So everything
//! above it, launches and their grids included, runs in the tests on a device that the host plays
//! (`kernels/tests/dialects`): what only a GPU can show is its driver, its memory model and its speed.
//!
//! Outputs are passed in, so that a decoder's memory can be made once and a step can be recorded. Values are f32 or bf16
//! ([`Float`]); sums are f32. On a GPU rows do not depend on their neighbours either, but bits differ from the CPU's.

use std::{fmt, marker::PhantomData, ops::Range, sync::Arc};

use candle_core::{Result, bail};
use half::bf16;

pub mod adamw;
pub mod adamw_8bit;
pub mod attention;
pub mod attention_backward;
pub mod cache;
pub mod cross_entropy;
pub mod embedding;
pub mod matmul;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;

#[cfg(feature = "cuda")]
mod cuda;

/// What a driver offers. Work happens in the order in which it was asked for.
pub trait Device: Send + Sync + fmt::Debug {
    /// The device's name, for people.
    fn name(&self) -> String;

    /// How many blocks it can work on at once, roughly; grids that may choose are a small multiple of it.
    fn multiprocessors(&self) -> usize;

    /// Bytes that can still be allocated, roughly.
    fn free_bytes(&self) -> Result<usize>;

    /// New memory, at a multiple of 256 bytes, with anything in it.
    ///
    /// **Errors**: the memory is full; the message says how much was asked for.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives memory of [`allocate`](Self::allocate) back, once the work before is done.
    fn free(&self, address: u64, bytes: usize);

    /// Copies to the device.
    ///
    /// # Safety
    ///
    /// As many bytes from `address` on are allocated, and nobody else writes them.
    unsafe fn upload(&self, address: u64, bytes: &[u8]) -> Result<()>;

    /// Copies from the device, when all work before is done.
    ///
    /// # Safety
    ///
    /// As many bytes from `address` on are allocated.
    unsafe fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()>;

    /// Sets bytes to zero.
    ///
    /// # Safety
    ///
    /// As [`upload`](Self::upload).
    unsafe fn clear(&self, address: u64, bytes: usize) -> Result<()>;

    /// Runs a kernel.
    ///
    /// # Safety
    ///
    /// The arguments are those of the kernel, and what it reads and writes through them is allocated.
    unsafe fn launch(&self, launch: &Launch) -> Result<()>;

    /// A matrix product by the device's own library.
    ///
    /// # Safety
    ///
    /// The operands are allocated and as large as the product says.
    unsafe fn matmul(&self, product: &Matmul) -> Result<()>;

    /// Waits until all work is done; errors of earlier work come to light here at the latest.
    fn synchronize(&self) -> Result<()>;
}

/// A device, shared by all that lies on it.
pub type Gpu = Arc<dyn Device>;

/// One launch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Stem of the files that hold it.
    pub module: &'static str,
    /// Its name there.
    pub kernel: &'static str,
    /// Blocks of the grid.
    pub blocks: [usize; 3],
    /// Threads of a block, a multiple of 32.
    pub threads: usize,
    /// Shared memory of a block.
    pub shared_bytes: usize,
    /// The kernel's parameters in order.
    pub args: &'a [Arg],
}

/// `c [rows, columns] = a [rows, inner] · b [inner, columns]`, row-major, sums in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Matmul {
    /// Rows of `a` and `c`.
    pub rows: usize,
    /// Columns of `b` and `c`.
    pub columns: usize,
    /// What is summed over.
    pub inner: usize,
    /// Where `a` lies,
    pub a: u64,
    /// and whether as `[inner, rows]`.
    pub a_transposed: bool,
    /// Where `b` lies,
    pub b: u64,
    /// and whether as `[columns, inner]`.
    pub b_transposed: bool,
    /// Where `c` lies.
    pub c: u64,
    /// Added to every row, `[columns]` in `output`'s type.
    pub bias: Option<u64>,
    /// Adds to what is in `c`.
    pub accumulate: bool,
    /// Type of `a` and `b`.
    pub input: MatmulType,
    /// Type of `c`.
    pub output: MatmulType,
}

impl Matmul {
    /// The same without its places: what an algorithm is chosen by.
    #[cfg(feature = "cuda")]
    fn shape(self) -> Self {
        Self { a: 0, b: 0, c: 0, bias: self.bias.map(|_| 0), ..self }
    }
}

/// Types of a product's operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatmulType {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

/// Why there is no GPU to work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoGpu {
    /// The program was built without the feature.
    NotBuilt,
    /// There is no driver library.
    NoDriver,
    /// The driver knows of no GPU.
    NoDevice,
    /// The GPU is older than the kernels.
    TooOld {
        /// Its name.
        model: String,
        /// Its compute capability
        major: i32,
        /// in two numbers.
        minor: i32,
    },
    /// The driver reported something else.
    Failed(String),
}

impl fmt::Display for NoGpu {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            NoGpu::NotBuilt => write!(formatter, "this build of glan carries no CUDA kernels"),
            NoGpu::NoDriver => write!(formatter, "no NVIDIA driver was found (libcuda.so.1)"),
            NoGpu::NoDevice => write!(formatter, "the NVIDIA driver knows of no GPU (see CUDA_VISIBLE_DEVICES)"),
            NoGpu::TooOld { model, major, minor } => {
                write!(formatter, "{model} has compute capability {major}.{minor}; the kernels need 8.0 or newer")
            }
            NoGpu::Failed(reason) => write!(formatter, "the NVIDIA driver failed: {reason}"),
        }
    }
}

impl std::error::Error for NoGpu {}

/// Opens the first NVIDIA GPU that the environment leaves visible.
pub fn cuda() -> std::result::Result<Gpu, NoGpu> {
    #[cfg(feature = "cuda")]
    return cuda::open();
    #[cfg(not(feature = "cuda"))]
    Err(NoGpu::NotBuilt)
}

/// A parameter of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// Where an array begins.
    Pointer(u64),
    /// A size or a flag.
    Int(i32),
    /// A scalar.
    Float(f32),
}

impl From<usize> for Arg {
    /// Sizes are checked against `i32` before they get here ([`launch`]); beyond it they saturate.
    fn from(value: usize) -> Self {
        Arg::Int(i32::try_from(value).unwrap_or(i32::MAX))
    }
}

impl From<bool> for Arg {
    fn from(value: bool) -> Self {
        Arg::Int(i32::from(value))
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Arg::Float(value)
    }
}

impl<T: Element> From<&Array<T>> for Arg {
    fn from(array: &Array<T>) -> Self {
        Arg::Pointer(array.address())
    }
}

/// What an array may hold: plain numbers, every bit pattern of which is one.
pub trait Element: Copy + Default + Send + Sync + fmt::Debug + 'static {}

impl Element for f32 {}
impl Element for f64 {}
impl Element for bf16 {}
impl Element for i32 {}
impl Element for u32 {}
impl Element for u8 {}

/// The types of weights and activations.
pub trait Float: Element {
    /// The type's name in a product.
    const MATMUL: MatmulType;

    /// The one of a kernel's two names that is for this type.
    fn kernel(f32: &'static str, bf16: &'static str) -> &'static str;

    /// From and to f32.
    fn from_f32(value: f32) -> Self;

    /// As [`Float::from_f32`].
    fn to_f32(self) -> f32;
}

impl Float for f32 {
    const MATMUL: MatmulType = MatmulType::F32;

    fn kernel(f32: &'static str, _: &'static str) -> &'static str {
        f32
    }

    fn from_f32(value: f32) -> Self {
        value
    }

    fn to_f32(self) -> f32 {
        self
    }
}

impl Float for bf16 {
    const MATMUL: MatmulType = MatmulType::Bf16;

    fn kernel(_: &'static str, bf16: &'static str) -> &'static str {
        bf16
    }

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

/// Memory of a device, given back when the last array over it goes.
struct Memory {
    gpu: Gpu,
    address: u64,
    bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.gpu.free(self.address, self.bytes);
    }
}

/// Values on a device: a whole allocation or a part of one. Cloning copies the reference, as with Candle's tensors.
#[derive(Clone)]
pub struct Array<T> {
    memory: Arc<Memory>,
    start: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T> fmt::Debug for Array<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{} × {} on {}", self.len, std::any::type_name::<T>(), self.memory.gpu.name())
    }
}

impl<T: Element> Array<T> {
    /// Room for `len` values with anything in it.
    pub fn uninit(gpu: &Gpu, len: usize) -> Result<Self> {
        let bytes = len * size_of::<T>();
        let address = gpu.allocate(bytes)?;
        let memory = Arc::new(Memory { gpu: gpu.clone(), address, bytes });
        Ok(Self { memory, start: 0, len, element: PhantomData })
    }

    /// Zeros.
    pub fn zeros(gpu: &Gpu, len: usize) -> Result<Self> {
        let array = Self::uninit(gpu, len)?;
        array.clear()?;
        Ok(array)
    }

    /// A copy of values of the host.
    pub fn from_slice(gpu: &Gpu, values: &[T]) -> Result<Self> {
        let array = Self::uninit(gpu, values.len())?;
        array.write(values)?;
        Ok(array)
    }

    /// Writes values of the host over all of its own.
    pub fn write(&self, values: &[T]) -> Result<()> {
        if values.len() != self.len {
            bail!("{} values for an array of {}", values.len(), self.len)
        }
        // SAFETY: the values are plain numbers, and the array's memory is as long.
        unsafe {
            let bytes = std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values));
            self.memory.gpu.upload(self.address(), bytes)
        }
    }

    /// A copy for the host, once everything before is done.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.len];
        // SAFETY: every bit pattern is a number, and the array's memory is as long.
        unsafe {
            let bytes = std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), size_of_val(&values[..]));
            self.memory.gpu.download(self.address(), bytes)?;
        }
        Ok(values)
    }

    /// Sets all values to zero.
    pub fn clear(&self) -> Result<()> {
        // SAFETY: the array's own memory.
        unsafe { self.memory.gpu.clear(self.address(), self.len * size_of::<T>()) }
    }

    /// A part of it, over the same memory.
    pub fn view(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.len {
            bail!("values {range:?} of an array of {}", self.len)
        }
        Ok(Self { start: self.start + range.start, len: range.len(), ..self.clone() })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it lies.
    pub fn gpu(&self) -> &Gpu {
        &self.memory.gpu
    }

    fn address(&self) -> u64 {
        self.memory.address + (self.start * size_of::<T>()) as u64
    }
}

/// Runs a kernel whose arguments have been checked against their shapes.
///
/// # Safety
///
/// As [`Device::launch`]; the arrays live until the call returns (freed memory is given back in order).
unsafe fn launch(gpu: &Gpu, launch: Launch) -> Result<()> {
    if launch.blocks.contains(&0) {
        return Ok(());
    }
    let limits = [i32::MAX as usize, 65_535, 65_535];
    if launch.blocks.iter().zip(limits).any(|(blocks, limit)| *blocks > limit) {
        bail!("{}: a grid of {:?} blocks is too large", launch.kernel, launch.blocks)
    }
    if launch.args.iter().any(|arg| matches!(arg, Arg::Int(i32::MAX))) {
        bail!("{}: a size does not fit 31 bits", launch.kernel)
    }
    // SAFETY: by this function's contract.
    unsafe { gpu.launch(&launch) }
}

/// Threads of a block that works through `width` values of a row, `per_thread` at a time.
fn threads_for(width: usize, per_thread: usize, most: usize) -> usize {
    width.div_ceil(per_thread).next_multiple_of(32).clamp(32, most)
}

/// Values that the kernels read at once in rows of `width`: 16 bytes where rows and arrays allow it (`wide` in
/// `common.cuh` decides in the same way).
fn values_at_once<F: Float>(width: usize, arrays: &[&Array<F>]) -> usize {
    let wide = 16 / size_of::<F>();
    let aligned = arrays.iter().all(|array| array.address().is_multiple_of(16));
    if aligned && width.is_multiple_of(wide) { wide } else { 1 }
}

/// Rows of `width` values in an array; all arrays of an op are measured by it.
fn rows_of<T: Element>(what: &str, array: &Array<T>, width: usize) -> Result<usize> {
    if width == 0 || !array.len().is_multiple_of(width) {
        bail!("{what}: {} values are no rows of {width}", array.len())
    }
    Ok(array.len() / width)
}

fn check_len<T: Element>(what: &str, array: &Array<T>, len: usize) -> Result<()> {
    if array.len() != len {
        bail!("{what}: expected {len} values, got {}", array.len())
    }
    Ok(())
}

/// Floats of shared memory that a sum over a block needs (`SCRATCH` in `common.cuh`).
const SCRATCH: usize = 32;
