//! Allocation of GPU memory, and copies to and from it.

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};
use rayon::prelude::*;

use super::array::{Array, Buffer, Element, ROWS};
use super::context::Cuda;
use super::reuse::reused;
use crate::error::{Error, Result};

impl Cuda {
    /// A buffer with arbitrary contents.
    pub(super) fn alloc<T: DeviceRepr>(&self, len: usize) -> Result<Buffer<T>> {
        // SAFETY: a kernel, a product or a copy writes all of the buffer, in the stream of this
        // thread's work, before anything reads it.
        let slice = unsafe { self.stream().alloc::<T>(len.max(1)) };
        Ok(Buffer::of(self.check(slice)?, self.stream()))
    }

    /// Copies values to the GPU.
    pub(super) fn bring<T: DeviceRepr>(&self, values: &[T]) -> Result<Buffer<T>> {
        if values.is_empty() {
            return self.alloc(0);
        }
        let slice = self.check(self.stream().clone_htod(values))?;
        Ok(Buffer::of(slice, self.stream()))
    }

    /// Copies values from the GPU, and waits for them.
    pub(super) fn fetch<T: DeviceRepr>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        self.check(self.stream().clone_dtoh(&buffer.slice))
    }

    pub(super) fn zero<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        buffer: &mut Buffer<T>,
    ) -> Result<()> {
        self.check(self.stream().memset_zeros(&mut buffer.slice))
    }

    /// A matrix of the engine's type with arbitrary contents.
    pub(super) fn empty(&self, rows: usize, columns: usize) -> Result<Array> {
        self.empty_of(self.element, rows, columns)
    }

    /// A matrix with arbitrary contents. From [`ROWS`] rows on, its buffer has space for a multiple
    /// of [`ROWS`], because products of 8-bit values pad their rows.
    pub(super) fn empty_of(&self, element: Element, rows: usize, columns: usize) -> Result<Array> {
        let padded = if rows < ROWS {
            rows
        } else {
            rows.next_multiple_of(ROWS)
        };
        let bytes = padded * columns * element.bytes();
        let buffer = reused(bytes, || self.alloc(bytes))?;
        Ok(Array::in_shared(buffer, element, rows, columns))
    }

    pub(super) fn zeros_of(&self, rows: usize, columns: usize) -> Result<Array> {
        let mut buffer = self.alloc(rows * columns * self.element.bytes())?;
        self.zero::<u8>(&mut buffer)?;
        Ok(Array::of(buffer, self.element, rows, columns))
    }

    /// A matrix of a type from f32 values.
    pub(super) fn upload_as(
        &self,
        element: Element,
        values: &[f32],
        rows: usize,
        columns: usize,
    ) -> Result<Array> {
        let bytes: Vec<u8> = match element {
            Element::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Element::Bf16 => pairs(values, |value| bf16::from_f32(value).to_le_bytes()),
            Element::F16 => pairs(values, |value| f16::from_f32(value).to_le_bytes()),
            Element::E4m3 => {
                let reason = "codes are made by a kernel, not from floats";
                return Err(Error::device("cuda", reason));
            }
        };
        self.adopt_bytes(element, &bytes, rows, columns)
    }

    /// Copies bytes to the GPU while it computes. `fill` writes those from an offset on, which is a
    /// multiple of 8. Every pass that begins after the return may read them.
    pub(super) fn upload_beside(
        &self,
        len: usize,
        fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<Buffer<u8>> {
        // Allocated and freed in the stream of the passes: what it had before may be in use there.
        let buffer = self.alloc::<u8>(len)?;
        let free = self.check(self.stream().record_event(None))?;
        let copied = (self.uploads.lock()).copy(&free, (buffer.address, len), fill);
        self.check(copied)?;
        Ok(buffer)
    }

    /// [`Cuda::upload_beside`] of f32 values as one row of the engine's type.
    pub(super) fn upload_values(&self, values: &[f32]) -> Result<Array> {
        let (element, count) = (self.element, values.len());
        let buffer = self.upload_beside(count * element.bytes(), |start, bytes| {
            let values = &values[start / element.bytes()..];
            match element {
                Element::Bf16 => each(bytes, values, |value| bf16::from_f32(value).to_le_bytes()),
                Element::F16 => each(bytes, values, |value| f16::from_f32(value).to_le_bytes()),
                Element::F32 | Element::E4m3 => each(bytes, values, f32::to_le_bytes),
            }
        })?;
        Ok(Array::of(buffer, element, 1, count))
    }

    /// A matrix of a type from its bytes.
    pub(super) fn adopt_bytes(
        &self,
        element: Element,
        bytes: &[u8],
        rows: usize,
        columns: usize,
    ) -> Result<Array> {
        Ok(Array::of(self.bring(bytes)?, element, rows, columns))
    }
}

/// Writes the bytes of values, on this core alone: the others may be computing.
fn each<const N: usize>(bytes: &mut [u8], values: &[f32], narrow: impl Fn(f32) -> [u8; N]) {
    for (bytes, &value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *bytes = narrow(value);
    }
}

/// The bytes of values as 16-bit floats, converted on all cores.
fn pairs(values: &[f32], narrow: impl Fn(f32) -> [u8; 2] + Sync) -> Vec<u8> {
    let mut bytes = vec![0; 2 * values.len()];
    let pairs = bytes.as_chunks_mut::<2>().0.par_iter_mut().zip(values);
    pairs
        .with_min_len(1 << 16)
        .for_each(|(bytes, &value)| *bytes = narrow(value));
    bytes
}
