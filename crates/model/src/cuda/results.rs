//! Results of passes on their way to the host, through pinned memory, to which the GPU copies at
//! full speed and without the host. While a copy is under way the host does other work.

use std::sync::Arc;

use cudarc::driver::{CudaStream, PinnedHostSlice, result};

use super::array::{Array, Element};
use super::context::Cuda;
use crate::error::{Error, Result};
use crate::sampling::{Highest, Logits};

/// Logits whose copy from the GPU is under way.
pub(crate) struct Reading {
    logits: Array,
    /// For each row, whether its highest logits suffice.
    highest: Vec<bool>,
    copy: Copied,
}

enum Copied {
    Highest(PinnedCopy),
    All(PinnedCopy),
}

/// A copy of f32 values to pinned memory that is under way.
pub(super) struct PinnedCopy {
    len: usize,
    /// None once the copy has been read.
    pinned: Option<PinnedHostSlice<f32>>,
    stream: Arc<CudaStream>,
}

impl Cuda {
    /// Begins to read the first rows of logits, one for each flag that says whether its highest
    /// logits suffice.
    pub(super) fn read_later(&self, logits: Array, highest: &[bool]) -> Result<Reading> {
        let copy = match highest.contains(&true) {
            true => Copied::Highest(self.copy_highest(&logits, highest.len())?),
            false => Copied::All(self.copy_rows(&logits, highest.len())?),
        };
        Ok(Reading {
            logits,
            highest: highest.to_vec(),
            copy,
        })
    }

    /// Waits for logits.
    pub(super) fn logits_of(&self, reading: Reading) -> Result<Vec<Logits>> {
        let Reading {
            logits,
            highest,
            copy,
        } = reading;
        let told = match copy {
            Copied::All(copy) => {
                let all = self.finish_rows(copy, logits.columns)?;
                return Ok(all.into_iter().map(Logits::All).collect());
            }
            Copied::Highest(copy) => self.finish_highest(copy)?,
        };
        let suffice = |(told, &highest): (&Option<Highest>, &bool)| highest && told.is_some();
        if told.iter().zip(&highest).all(suffice) {
            return Ok(told.into_iter().flatten().map(Logits::Highest).collect());
        }
        let all = self.read_rows(&logits, highest.len())?;
        let told = told.into_iter().zip(highest);
        let told = told.map(|(told, highest)| told.filter(|_| highest).map(Logits::Highest));
        Ok(told
            .zip(all)
            .map(|(told, all)| told.unwrap_or(Logits::All(all)))
            .collect())
    }

    /// Reads the first rows of a matrix as f32.
    pub(super) fn read_rows(&self, x: &Array, rows: usize) -> Result<Vec<Vec<f32>>> {
        self.finish_rows(self.copy_rows(x, rows)?, x.columns)
    }

    fn finish_rows(&self, copy: PinnedCopy, columns: usize) -> Result<Vec<Vec<f32>>> {
        self.finish_copy(copy, |values| {
            values.chunks(columns).map(<[f32]>::to_vec).collect()
        })
    }

    /// Begins to copy the first rows as f32.
    fn copy_rows(&self, x: &Array, rows: usize) -> Result<PinnedCopy> {
        self.begin_copy(&self.cast(&x.part(0, rows, x.columns), Element::F32)?)
    }

    /// Begins to copy an f32 matrix, which may be dropped at once.
    pub(super) fn begin_copy(&self, values: &Array) -> Result<PinnedCopy> {
        let len = values.len();
        let mut pinned = match self.free_pinned(len) {
            Some(pinned) => pinned,
            None => {
                // To allocate takes long, so that a few sizes serve all passes.
                let room = len.next_power_of_two();
                // SAFETY: the copy below writes every value that is read.
                self.check(unsafe { self.context.alloc_pinned_with_flags::<f32>(room, 0) })?
            }
        };
        let to = &mut self.check(pinned.as_mut_slice())?[..len];
        let stream = self.stream().clone();
        // SAFETY: both hold this many values; the array is freed in the same stream, and the pinned
        // memory is neither read nor freed before the stream has been waited for.
        let copied = unsafe { result::memcpy_dtoh_async(to, values.address(), stream.cu_stream()) };
        let copy = PinnedCopy {
            len,
            pinned: Some(pinned),
            stream,
        };
        self.check(copied)?;
        Ok(copy)
    }

    /// Takes pinned memory for this many values that nobody uses.
    fn free_pinned(&self, len: usize) -> Option<PinnedHostSlice<f32>> {
        let free = &mut self.steps.lock().returned;
        let place = free.iter().position(|pinned| pinned.len() >= len)?;
        Some(free.swap_remove(place))
    }

    /// Waits for a copy and reads it.
    pub(super) fn finish_copy<T>(
        &self,
        mut copy: PinnedCopy,
        read: impl FnOnce(&[f32]) -> T,
    ) -> Result<T> {
        self.check(copy.stream.synchronize())?;
        let taken = copy.pinned.take();
        let mut pinned = taken.ok_or_else(|| Error::device("cuda", "has read a copy twice"))?;
        let values = read(&self.check(pinned.as_mut_slice())?[..copy.len]);
        self.steps.lock().returned.push(pinned);
        Ok(values)
    }
}

impl Drop for PinnedCopy {
    /// Waits for the copy if nobody has: the GPU still writes to the memory.
    fn drop(&mut self) {
        if self.pinned.is_some() {
            // An error of the device shows in the next pass.
            let _ = self.stream.synchronize();
        }
    }
}
