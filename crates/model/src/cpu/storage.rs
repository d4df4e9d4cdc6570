//! Candle's CPU matrices: made of values, read as slices, and changed in place.

use std::cell::Cell;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Storage, Tensor};

use crate::error::{Error, Result};

/// A matrix of these values, row by row.
pub(super) fn matrix(values: Vec<f32>, columns: usize) -> Result<Tensor> {
    let rows = values.len().checked_div(columns).unwrap_or(0);
    Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
}

/// The columns of a matrix.
pub(super) fn columns(x: &Tensor) -> usize {
    x.dims().last().copied().unwrap_or(0)
}

/// A matrix's values while its storage is locked for reading.
pub(crate) struct View<G> {
    guard: G,
    range: Range<usize>,
}

impl<G: Deref<Target = Storage>> Deref for View<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            // `read` has checked this; a storage does not change its kind.
            _ => &[],
        }
    }
}

/// The values of a contiguous f32 matrix on the CPU.
pub(crate) fn read(x: &Tensor) -> Result<View<impl Deref<Target = Storage> + use<'_>>> {
    let (guard, layout) = x.storage_and_layout();
    let range = match (&*guard, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => start..end,
        _ => return Err(Error::format("matrix", "is not contiguous f32 on the cpu")),
    };
    Ok(View { guard, range })
}

/// Changes the values of a contiguous f32 matrix on the CPU.
pub(super) fn write(x: &Tensor, change: impl FnOnce(&mut [f32])) -> Result<()> {
    Ok(x.inplace_op1(&Change(Cell::new(Some(change))))?)
}

struct Change<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        "change"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("the matrix is not contiguous f32");
        };
        if let Some(change) = self.0.take() {
            change(&mut values[start..end]);
        }
        Ok(())
    }
}
