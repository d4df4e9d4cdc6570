//! Bytes of mapped files, and the memory-map helper: the one place outside `cuda/` that needs
//! `unsafe`.

use std::fmt;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Bytes of a mapped file or of memory; clones and parts share them.
#[derive(Clone)]
pub(crate) struct Bytes {
    owner: Arc<Owner>,
    range: Range<usize>,
}

enum Owner {
    File {
        map: Mmap,
        /// For reads that do not go through the map.
        #[cfg(feature = "cuda")]
        file: std::fs::File,
    },
    Memory(Vec<u8>),
}

impl Bytes {
    /// Maps a file for reading.
    ///
    /// # Errors
    /// The file cannot be opened or mapped.
    #[allow(unsafe_code)]
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let file = togi_common::file::open(path).map_err(|e| Error::file(path, e))?;
        // SAFETY: the map is read-only and only handed out as bytes; weight files are immutable
        // artefacts by contract, so nothing truncates or rewrites the file while it is
        // mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::file(path, e))?;
        let range = 0..map.len();
        let owner = Owner::File {
            map,
            #[cfg(feature = "cuda")]
            file,
        };
        let owner = Arc::new(owner);
        Ok(Self { owner, range })
    }

    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        let owner = Arc::new(Owner::Memory(bytes));
        Self { owner, range }
    }

    /// A slice of these bytes as shared bytes.
    pub(crate) fn part(&self, slice: &[u8]) -> Self {
        let start = slice.as_ptr() as usize - self.as_ptr() as usize + self.range.start;
        Self {
            owner: Arc::clone(&self.owner),
            range: start..start + slice.len(),
        }
    }

    /// Copies the bytes from the `start`-th on. A file is read instead of copied from its map,
    /// because many threads can read at once, and page faults of a map are serialized.
    #[cfg(feature = "cuda")]
    pub(crate) fn copy_to(&self, start: usize, out: &mut [u8]) -> std::io::Result<()> {
        match &*self.owner {
            Owner::File { file, .. } => std::os::unix::fs::FileExt::read_exact_at(
                file,
                out,
                (self.range.start + start) as u64,
            ),
            Owner::Memory(_) => {
                out.copy_from_slice(&self[start..start + out.len()]);
                Ok(())
            }
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes: &[u8] = match &*self.owner {
            Owner::File { map, .. } => map,
            Owner::Memory(bytes) => bytes,
        };
        &bytes[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
