//! Matrices in the card's memory: a shared buffer, a place in it, a shape and an element type.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

use super::Cuda;
use crate::error::{Error, Result};
use crate::float::Float;

/// What products of 8-bit values count rows by.
pub(super) const ROWS: usize = 16;

/// The type of a matrix's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    Bf16,
    F16,
    /// 8-bit floats: codes, which stand for values only beside scales.
    E4m3,
}

impl Element {
    pub(super) fn of(float: Float) -> Self {
        match float {
            Float::F32 => Self::F32,
            Float::Fp16 => Self::F16,
            Float::Bf16 => Self::Bf16,
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::E4m3 => 1,
        }
    }

    /// Its name in the kernels' names.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::E4m3 => "e4m3",
        }
    }
}

/// Any values in the card's memory; its address does not change.
pub(crate) struct Buffer<T> {
    slice: CudaSlice<T>,
    pub(super) address: u64,
}

impl<T> Drop for Buffer<T> {
    /// Memory is given back on whatever thread lets it go, perhaps one that has never seen the
    /// card.
    fn drop(&mut self) {
        let context = self.slice.context();
        context.record_err(context.bind_to_thread());
    }
}

impl<T> Buffer<T> {
    pub(super) fn of(slice: CudaSlice<T>, stream: &Arc<CudaStream>) -> Self {
        let address = slice.device_ptr(stream).0;
        Self { slice, address }
    }

    pub(super) fn len(&self) -> usize {
        self.slice.len()
    }
}

/// A matrix; clones share it.
#[derive(Clone)]
pub(crate) struct Array {
    buffer: Arc<Buffer<u8>>,
    /// Bytes before the first value.
    offset: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) element: Element,
}

impl Array {
    pub(super) fn of(buffer: Buffer<u8>, element: Element, rows: usize, columns: usize) -> Self {
        Self {
            buffer: Arc::new(buffer),
            offset: 0,
            rows,
            columns,
            element,
        }
    }

    pub(super) fn address(&self) -> u64 {
        self.buffer.address + self.offset as u64
    }

    pub(super) fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Whether there is room for so many rows, whatever is in them.
    pub(super) fn has_room(&self, rows: usize) -> bool {
        let end = self.offset + rows * self.columns * self.element.bytes();
        end <= self.buffer.len()
    }

    /// The matrix's values from the `first`-th, under another shape.
    pub(super) fn part(&self, first: usize, rows: usize, columns: usize) -> Self {
        Self {
            offset: self.offset + first * self.element.bytes(),
            rows,
            columns,
            ..self.clone()
        }
    }

    /// Whether rows can be read by eights.
    pub(super) fn is_vectorized(&self) -> bool {
        self.columns.is_multiple_of(8)
            && self
                .address()
                .is_multiple_of(8 * self.element.bytes() as u64)
    }
}

impl Cuda {
    /// Room for values, whatever is in it.
    pub(super) fn room<T: DeviceRepr>(&self, len: usize) -> Result<Buffer<T>> {
        // SAFETY: a kernel, a product or a copy writes all of it, in the one stream, before
        // anything reads it.
        let slice = unsafe { self.stream.alloc::<T>(len.max(1)) };
        Ok(Buffer::of(self.check(slice)?, &self.stream))
    }

    /// Values brought to the card.
    pub(super) fn bring<T: DeviceRepr>(&self, values: &[T]) -> Result<Buffer<T>> {
        if values.is_empty() {
            return self.room(0);
        }
        let slice = self.check(self.stream.clone_htod(values))?;
        Ok(Buffer::of(slice, &self.stream))
    }

    /// Values fetched from the card; waits for them.
    pub(super) fn fetch<T: DeviceRepr>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        self.check(self.stream.clone_dtoh(&buffer.slice))
    }

    pub(super) fn zero<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        buffer: &mut Buffer<T>,
    ) -> Result<()> {
        self.check(self.stream.memset_zeros(&mut buffer.slice))
    }

    /// A matrix of the engine's type with anything in it.
    pub(super) fn empty(&self, rows: usize, columns: usize) -> Result<Array> {
        self.empty_of(self.element, rows, columns)
    }

    /// Of many rows, there is room for a multiple of [`ROWS`].
    pub(super) fn empty_of(&self, element: Element, rows: usize, columns: usize) -> Result<Array> {
        let room = if rows < ROWS {
            rows
        } else {
            rows.next_multiple_of(ROWS)
        };
        let buffer = self.room(room * columns * element.bytes())?;
        Ok(Array::of(buffer, element, rows, columns))
    }

    pub(super) fn zeros_of(&self, rows: usize, columns: usize) -> Result<Array> {
        let mut buffer = self.room(rows * columns * self.element.bytes())?;
        self.zero::<u8>(&mut buffer)?;
        Ok(Array::of(buffer, self.element, rows, columns))
    }

    /// A matrix of a type from f32.
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

    /// A matrix's values in f32; waits for them.
    pub(super) fn download_all(&self, x: &Array) -> Result<Vec<f32>> {
        let values = self.room::<f32>(x.len())?;
        let kernel = self.kernel("to_f32", x.element, None);
        let args = [values.address.into(), x.into(), x.len().into()];
        self.launch_values(&kernel, x.len(), &args)?;
        let mut values = self.fetch(&values)?;
        values.truncate(x.len());
        Ok(values)
    }
}

/// The bytes of values in 16 bit, by all cores.
fn pairs(values: &[f32], narrow: impl Fn(f32) -> [u8; 2] + Sync) -> Vec<u8> {
    use rayon::prelude::*;
    let mut bytes = vec![0; 2 * values.len()];
    let pairs = bytes.as_chunks_mut::<2>().0.par_iter_mut().zip(values);
    pairs
        .with_min_len(1 << 16)
        .for_each(|(bytes, &value)| *bytes = narrow(value));
    bytes
}
