//! Bytes of mapped files, and the memory-map helper: the one place outside `cuda/` that needs `unsafe`.

use std::fmt;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Bytes of a mapped file or of memory; clones and parts share them.
#[derive(Clone)]
pub(crate) struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// Maps a file for reading.
    ///
    /// # Errors
    /// The file cannot be opened or mapped.
    #[allow(unsafe_code)]
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::file(path, e))?;
        // SAFETY: the map is read-only and only handed out as bytes; weight files are immutable artefacts by contract, so
        // nothing truncates or rewrites the file while it is mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::file(path, e))?;
        Ok(Self::of(map))
    }

    pub(crate) fn of(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let range = 0..owner.as_ref().len();
        Self {
            owner: Arc::new(owner),
            range,
        }
    }

    /// The part that a slice of these bytes is.
    pub(crate) fn part(&self, slice: &[u8]) -> Self {
        let start = slice.as_ptr() as usize - self.as_ptr() as usize + self.range.start;
        Self {
            owner: Arc::clone(&self.owner),
            range: start..start + slice.len(),
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
