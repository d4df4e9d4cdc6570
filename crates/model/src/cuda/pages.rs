//! Pages of keys and values on the GPU. They are allocated in slabs on demand: an engine that never
//! decodes allocates none, and a page never moves.

use cudarc::driver::result;
use parking_lot::Mutex;

use super::array::Buffer;
use super::context::Cuda;
use crate::error::Result;
use crate::ops::decoding::PageShape;

/// Bytes of a slab, unless a page is larger.
const SLAB: usize = 256 << 20;
/// The most pages in a slab.
const SLAB_PAGES: usize = 256;

/// The pages of an engine.
pub(crate) struct Pages {
    pub(super) shape: PageShape,
    /// Bytes per page.
    bytes: usize,
    slabs: Mutex<Vec<Buffer<u8>>>,
}

impl Pages {
    pub(super) fn new(shape: PageShape, value_bytes: usize) -> Self {
        Self {
            shape,
            bytes: shape.len() * value_bytes,
            slabs: Mutex::default(),
        }
    }

    fn slab_pages(&self) -> usize {
        (SLAB / self.bytes).clamp(1, SLAB_PAGES)
    }

    /// Allocates slabs for `count` pages, or frees the slabs beyond them.
    pub(super) fn resize(&self, cuda: &Cuda, count: usize) -> Result<()> {
        let mut slabs = self.slabs.lock();
        slabs.truncate(count.div_ceil(self.slab_pages()));
        while slabs.len() * self.slab_pages() < count {
            slabs.push(cuda.alloc(self.slab_pages() * self.bytes)?);
        }
        Ok(())
    }

    /// Returns the device addresses of pages.
    pub(super) fn addresses(&self, numbers: &[u32]) -> Vec<u64> {
        let slabs = self.slabs.lock();
        let address = |&number: &u32| {
            let (slab, page) = (
                number as usize / self.slab_pages(),
                number as usize % self.slab_pages(),
            );
            slabs[slab].address + (page * self.bytes) as u64
        };
        numbers.iter().map(address).collect()
    }
    /// Copies a page to another.
    pub(super) fn copy(&self, cuda: &Cuda, from: u32, to: u32) -> Result<()> {
        let addresses = self.addresses(&[from, to]);
        cuda.check(cuda.stream().context().bind_to_thread())?;
        let stream = cuda.stream().cu_stream();
        // SAFETY: both are pages of this engine's slabs, `bytes` long and not the same, and the
        // stream runs the copy between the passes that write them.
        let copied =
            unsafe { result::memcpy_dtod_async(addresses[1], addresses[0], self.bytes, stream) };
        cuda.check(copied)
    }
}
