//! Pages of keys and values on the GPU. They are allocated in slabs, so that an engine that never
//! decodes takes no memory for them, and so that a page never moves.

use parking_lot::Mutex;

use super::array::Buffer;
use super::context::Cuda;
use crate::error::Result;
use crate::ops::decoding::PageShape;

/// The bytes of a slab, unless a page is larger.
const SLAB: usize = 256 << 20;
/// The most pages of a slab.
const SLAB_PAGES: usize = 256;

/// The pages of an engine.
pub(crate) struct Pages {
    pub(super) shape: PageShape,
    /// Bytes of a page.
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

    /// Allocates slabs until there are this many pages, or frees the slabs above.
    pub(super) fn resize(&self, cuda: &Cuda, count: usize) -> Result<()> {
        let mut slabs = self.slabs.lock();
        slabs.truncate(count.div_ceil(self.slab_pages()));
        while slabs.len() * self.slab_pages() < count {
            slabs.push(cuda.alloc(self.slab_pages() * self.bytes)?);
        }
        Ok(())
    }

    /// The addresses of pages.
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
}
