//! Matrices in GPU memory: a shared buffer, an offset, a shape and an element type.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use crate::float::Float;

/// Products of 8-bit values need a multiple of this many rows.
pub(super) const ROWS: usize = 16;

/// The type of a matrix's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    Bf16,
    F16,
    /// Codes of 8-bit floats; they are values only together with scales.
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

    /// The part of a kernel's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::E4m3 => "e4m3",
        }
    }
}

/// Values in GPU memory at a fixed address.
pub(crate) struct Buffer<T> {
    pub(super) slice: CudaSlice<T>,
    pub(super) address: u64,
}

impl<T> Drop for Buffer<T> {
    /// The thread that drops a buffer may be one without a current context, which freeing needs.
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

/// A buffer of f32 values.
pub(crate) struct Flat(pub(super) Buffer<f32>);

/// A sum of losses.
pub(crate) struct Sum(pub(super) Buffer<f64>);

/// A matrix; clones share its buffer.
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
        Self::in_shared(Arc::new(buffer), element, rows, columns)
    }

    /// A matrix at the beginning of a buffer.
    pub(super) fn in_shared(
        buffer: Arc<Buffer<u8>>,
        element: Element,
        rows: usize,
        columns: usize,
    ) -> Self {
        Self {
            buffer,
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

    /// Whether the buffer has space for this many rows.
    pub(super) fn has_room(&self, rows: usize) -> bool {
        let end = self.offset + rows * self.columns * self.element.bytes();
        end <= self.buffer.len()
    }

    /// The values from index `first` on, in another shape.
    pub(super) fn part(&self, first: usize, rows: usize, columns: usize) -> Self {
        Self {
            offset: self.offset + first * self.element.bytes(),
            rows,
            columns,
            ..self.clone()
        }
    }

    /// Whether kernels can read eight values at once.
    pub(super) fn is_vectorized(&self) -> bool {
        self.columns.is_multiple_of(8)
            && self
                .address()
                .is_multiple_of(8 * self.element.bytes() as u64)
    }
}
