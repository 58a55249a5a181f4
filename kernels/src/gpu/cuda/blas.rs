//! Matrix products by cuBLASLt, opened when the first product is asked for.
//!
//! cuBLASLt is column-major: the row-major `c = a · b` is its `cᵀ = bᵀ · aᵀ`, so the operands change places and what is stored transposed is
//! its plain case. The algorithm of a shape is asked for once.

use std::{collections::HashMap, ffi::c_void, path::PathBuf};

use candle_core::{Result, bail};
use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys::{
            self, cublasComputeType_t, cublasLtEpilogue_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
            cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t,
            cudaDataType_t,
        },
    },
    driver::{result as driver, sys::CUstream},
};

use crate::gpu::{Matmul, MatmulType};

/// Memory that an algorithm may use; what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    algorithms: HashMap<Matmul, cublasLtMatmulAlgo_t>,
}

// SAFETY: a handle of the library, used by one thread at a time (it is behind a lock).
unsafe impl Send for Blas {}

impl Blas {
    /// **Errors**: the library is not found.
    pub(super) fn open() -> std::result::Result<Self, String> {
        find();
        // SAFETY: only opens the library.
        if !unsafe { sys::is_culib_present() } {
            return Err("libcublasLt.so.13 was not found: install the CUDA 13 libraries, or name their folder in \
                        LD_LIBRARY_PATH (PyTorch's wheels have them under site-packages/nvidia/cu13/lib)"
                .to_owned());
        }
        let handle = result::create_handle().map_err(|error| format!("cuBLASLt does not start: {error}"))?;
        // SAFETY: the caller has made the context current; kept for the life of the process.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE_BYTES) }
            .map_err(|error| format!("no room for cuBLASLt: {error:?}"))?;
        Ok(Self { handle, workspace, algorithms: HashMap::new() })
    }

    /// # Safety
    ///
    /// The product's operands are allocated and as large as it says, on the current context.
    pub(super) unsafe fn multiply(&mut self, product: &Matmul, stream: CUstream) -> Result<()> {
        // SAFETY: by this function's contract.
        match unsafe { self.try_multiply(product, stream) } {
            Ok(()) => Ok(()),
            Err(error) => bail!("cuBLASLt: {error} for {product:?}"),
        }
    }

    unsafe fn try_multiply(&mut self, product: &Matmul, stream: CUstream) -> std::result::Result<(), CublasError> {
        let &Matmul { rows, columns, inner, .. } = product;
        let (input, output) = (data_type(product.input), data_type(product.output));
        let stored = |transposed: bool, rows: usize, columns: usize| {
            if transposed { Layout::new(input, rows, columns) } else { Layout::new(input, columns, rows) }
        };
        // As stored, read by columns: b [inner, columns] is columns × inner, or transposed inner × columns.
        let b = stored(product.b_transposed, inner, columns)?;
        let a = stored(product.a_transposed, rows, inner)?;
        let c = Layout::new(output, columns, rows)?;
        // SAFETY: descriptors that live to the end of this function; numbers of the sizes that the attributes have.
        unsafe {
            let operation = Operation::new(product)?;
            let known = self.algorithms.get(&product.shape()).copied();
            let algorithm = match known {
                Some(algorithm) => algorithm,
                None => {
                    let preference = Preference::new()?;
                    let found =
                        result::get_matmul_algo_heuristic(self.handle, operation.0, b.0, a.0, c.0, c.0, preference.0)?;
                    self.algorithms.insert(product.shape(), found.algo);
                    found.algo
                }
            };
            let (alpha, beta) = (1f32, if product.accumulate { 1f32 } else { 0f32 });
            result::matmul(
                self.handle,
                operation.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                product.b as *const c_void,
                b.0,
                product.a as *const c_void,
                a.0,
                product.c as *const c_void,
                c.0,
                product.c as *mut c_void,
                c.0,
                &raw const algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        }
    }
}

/// A dense matrix, by columns.
struct Layout(cublasLtMatrixLayout_t);

impl Layout {
    fn new(data_type: cudaDataType_t, rows: usize, columns: usize) -> std::result::Result<Self, CublasError> {
        result::create_matrix_layout(data_type, rows as u64, columns as u64, rows as i64).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Operation(cublasLtMatmulDesc_t);

impl Operation {
    fn new(product: &Matmul) -> std::result::Result<Self, CublasError> {
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let operation = Self(result::create_matmul_desc(compute, cudaDataType_t::CUDA_R_32F)?);
        // CUBLAS_OP_N and CUBLAS_OP_T.
        let flag = i32::from;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, flag(product.b_transposed))?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, flag(product.a_transposed))?;
        if let Some(bias) = product.bias {
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        Ok(operation)
    }

    fn set<T: Copy>(&self, attribute: Attribute, value: T) -> std::result::Result<(), CublasError> {
        // SAFETY: the library copies the value.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, (&raw const value).cast(), size_of::<T>()) }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> std::result::Result<Self, CublasError> {
        let preference = Self(result::create_matmul_pref()?);
        let attribute = cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let bytes = WORKSPACE_BYTES;
        // SAFETY: the library copies the number.
        unsafe {
            result::set_matmul_pref_attribute(preference.0, attribute, (&raw const bytes).cast(), size_of_val(&bytes))?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn data_type(of: MatmulType) -> cudaDataType_t {
    match of {
        MatmulType::F32 => cudaDataType_t::CUDA_R_32F,
        MatmulType::Bf16 => cudaDataType_t::CUDA_R_16BF,
    }
}

/// Opens the library where toolkits put it when the loader's path does not have it; a later search by name finds what is open.
fn find() {
    const NAMES: [&str; 2] = ["libcublas.so.13", "libcublasLt.so.13"];
    let mut folders: Vec<PathBuf> =
        std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("lib64")).into_iter().collect();
    folders.extend(["/usr/local/cuda/lib64", "/usr/local/cuda-13.0/lib64", "/usr/lib64"].map(PathBuf::from));
    for folder in folders {
        // SAFETY: NVIDIA's libraries; what they run when they are opened is what the loader would run.
        let opened = unsafe { libloading::Library::new(folder.join(NAMES[1])) };
        if let Ok(library) = opened {
            // Open for the life of the process.
            std::mem::forget(library);
            return;
        }
    }
}
