//! The memory-map helper: the one place outside `cuda/` that needs `unsafe`.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Maps a file for reading.
///
/// # Errors
/// The file cannot be opened or mapped.
#[allow(unsafe_code)]
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    // SAFETY: the map is read-only and private to the loader, which copies out of it and drops it; weight files are
    // immutable artefacts by contract, so nothing truncates or rewrites the file while it is mapped.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::file(path, e))
}
