//! Copies to the GPU while it computes: from pinned memory, over a stream of their own, so that no
//! pass waits for them. Staging copies a whole base by many threads; this copies adapters by the
//! caller's.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};

use super::staging::Pinned;

/// Bytes of a slot of pinned memory, and slots: one is filled while the GPU copies from the other.
const SLOT: usize = 1 << 20;
const SLOTS: usize = 2;

/// The stream and its pinned memory.
pub(super) struct Uploads {
    stream: Arc<CudaStream>,
    /// After the last copies from the slots.
    copied: [CudaEvent; SLOTS],
    pinned: Pinned,
}

impl Uploads {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        Ok(Self {
            stream: context.new_stream()?,
            copied: [context.new_event(None)?, context.new_event(None)?],
            pinned: Pinned::new(context, SLOTS * SLOT)?,
        })
    }

    /// Copies bytes to an address, which may be written after the event `free`. `fill` writes the
    /// bytes from an offset on, which is a multiple of 8. Returns when the bytes are there.
    pub(super) fn copy(
        &mut self,
        free: &CudaEvent,
        (to, len): (u64, usize),
        fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), DriverError> {
        self.stream.wait(free)?;
        let begun = self.begin((to, len), fill);
        // Also after a failure, because the copies that were begun use the slots and the target.
        begun.and(self.stream.synchronize())
    }

    fn begin(
        &mut self,
        (to, len): (u64, usize),
        mut fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), DriverError> {
        for (part, start) in (0..len).step_by(SLOT).enumerate() {
            let slot = part % SLOTS;
            self.copied[slot].synchronize()?;
            // SAFETY: `self` is borrowed alone, and the last copy from the slot has ended.
            let bytes = unsafe { self.pinned.bytes(slot * SLOT, SLOT.min(len - start)) };
            fill(start, bytes);
            let to = to + start as u64;
            // SAFETY: the target has space for the bytes, and lives until the caller has
            // synchronized; the slot is not changed before its event has passed.
            unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }?;
            self.copied[slot].record(&self.stream)?;
        }
        Ok(())
    }
}
