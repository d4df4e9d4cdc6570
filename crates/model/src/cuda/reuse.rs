//! Buffers that recorded passes share, so that a recorded pass allocates nothing.

use std::cell::RefCell;
use std::sync::Arc;

use super::array::Buffer;
use crate::error::{Error, Result};

/// Buffers of recorded passes. Passes run one after the other in one stream, so a buffer that
/// nothing holds any more can be taken again.
#[derive(Default)]
pub(super) struct Reused {
    buffers: Vec<Arc<Buffer<u8>>>,
    /// Whether buffers may be added: not while a pass is recorded.
    grows: bool,
}

thread_local! {
    /// The buffers of the pass that this thread prepares or records.
    static CURRENT: RefCell<Option<Reused>> = const { RefCell::new(None) };
}

impl Reused {
    /// Computes with these buffers. With `grows`, buffers that are missing are added.
    pub(super) fn lend<T>(&mut self, grows: bool, compute: impl FnOnce() -> T) -> T {
        let buffers = std::mem::take(&mut self.buffers);
        CURRENT.set(Some(Self { buffers, grows }));
        let computed = compute();
        if let Some(reused) = CURRENT.take() {
            self.buffers = reused.buffers;
        }
        computed
    }
}

/// Returns a buffer of this many bytes: one of the current pass's that nothing holds, else a new
/// one.
pub(super) fn reused(
    bytes: usize,
    alloc: impl FnOnce() -> Result<Buffer<u8>>,
) -> Result<Arc<Buffer<u8>>> {
    CURRENT.with_borrow_mut(|current| {
        let Some(current) = current else {
            return Ok(Arc::new(alloc()?));
        };
        // Of this very size: with them, a repeated pass finds all that it took before.
        let is_free = |buffer: &&Arc<Buffer<u8>>| {
            buffer.len() == bytes.max(1) && Arc::strong_count(buffer) == 1
        };
        if let Some(buffer) = current.buffers.iter().find(is_free) {
            return Ok(buffer.clone());
        }
        if !current.grows {
            return Err(Error::device("cuda", "a recorded pass lacks a buffer"));
        }
        let buffer = Arc::new(alloc()?);
        current.buffers.push(buffer.clone());
        Ok(buffer)
    })
}
