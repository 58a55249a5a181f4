//! Access to the f32 values of CPU tensors.
//!
//! Reading borrows the storage; writing goes through Candle's in-place op, which locks it. An op that writes one tensor
//! and reads others must not be handed views of one storage: the lock is not re-entrant.

use std::{cell::RefCell, ops::Deref};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};

/// The values of a contiguous f32 tensor on the CPU, behind Candle's read lock.
struct Values<G> {
    guard: G,
    start: usize,
    end: usize,
}

impl<G: Deref<Target = Storage>> Deref for Values<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            _ => unreachable!("checked when the guard was made"),
        }
    }
}

/// Borrows a tensor's values.
pub(crate) fn read(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + Sync> {
    let (guard, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, got strides {:?} for shape {:?}", layout.stride(), layout.shape())
    };
    match &*guard {
        Storage::Cpu(CpuStorage::F32(_)) => {}
        _ => bail!("expected an f32 tensor on the CPU, got {:?} on {:?}", tensor.dtype(), tensor.device().location()),
    }
    Ok(Values { guard, start, end })
}

struct Write<F>(RefCell<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Write<F> {
    fn name(&self) -> &'static str {
        "glan-write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor to write to") };
        let CpuStorage::F32(values) = storage else { bail!("expected an f32 tensor to write to") };
        match self.0.borrow_mut().take() {
            Some(body) => body(&mut values[start..end]),
            None => bail!("an in-place op ran twice"),
        }
    }
}

/// Hands a tensor's values to `body` for writing.
pub(crate) fn write(tensor: &Tensor, body: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    tensor.inplace_op1(&Write(RefCell::new(Some(body))))
}

/// Values that several threads write, each its own part.
pub(crate) struct SharedMut<'a> {
    start: *mut f32,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the methods' contracts keep the parts of different threads apart.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(crate) fn new(values: &'a mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), owner: std::marker::PhantomData }
    }

    /// `len` values from `first` on.
    ///
    /// # Safety
    ///
    /// No two calls under way may reach the same value.
    #[allow(clippy::mut_from_ref, reason = "the contract keeps the parts apart")]
    pub(crate) unsafe fn slice(&self, first: usize, len: usize) -> &mut [f32] {
        assert!(first + len <= self.len);
        // SAFETY: inside of the values, and nobody else's by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }

    /// Writes one value.
    ///
    /// # Safety
    ///
    /// As [`slice`](Self::slice).
    pub(crate) unsafe fn set(&self, index: usize, value: f32) {
        assert!(index < self.len);
        // SAFETY: as above.
        unsafe { *self.start.add(index) = value };
    }
}

/// A new CPU tensor from its values.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &candle_core::Device::Cpu)
}

/// Sets every value to zero, in place.
pub fn fill_zero(destination: &Tensor) -> Result<()> {
    write(destination, |values| {
        values.fill(0.0);
        Ok(())
    })
}

/// Copies a tensor's values out.
pub fn to_vec(source: &Tensor) -> Result<Vec<f32>> {
    Ok(read(source)?.to_vec())
}

/// Calls `body(first_row, rows)` over chunks of rows of `values`, in parallel where the work is worth a thread.
///
/// `width` is the length of a row. Chunking never changes what is computed for a row.
pub(crate) fn for_row_chunks(values: &mut [f32], width: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    use rayon::prelude::*;
    const WORTH_A_THREAD: usize = 1 << 14;
    if values.len() < 2 * WORTH_A_THREAD || rayon::current_num_threads() == 1 {
        return body(0, values);
    }
    let rows = (WORTH_A_THREAD / width).max(1);
    values.par_chunks_mut(rows * width).enumerate().for_each(|(chunk, values)| body(chunk * rows, values));
}
