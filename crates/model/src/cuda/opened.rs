//! A card before anything computes on it: its names, and its memory as this process sees it.

use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::card;
use crate::error::Result;
use crate::gpu_limits::GpuMemory;

/// An open card.
#[derive(Clone)]
pub(crate) struct Opened {
    context: Arc<CudaContext>,
}

impl Opened {
    /// Opens a card.
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        let context = card::open(ordinal)?;
        Ok(Self { context })
    }

    /// What its maker calls it, and its id.
    pub(crate) fn names(&self) -> Result<(String, String)> {
        let name = self.check(self.context.name())?;
        let uuid = self.check(self.context.uuid())?;
        let digits: String = uuid.bytes.iter().map(|b| format!("{b:02x}")).collect();
        let (a, rest) = digits.split_at(8);
        let uuid = format!(
            "GPU-{a}-{}-{}-{}-{}",
            &rest[..4],
            &rest[4..8],
            &rest[8..12],
            &rest[12..]
        );
        Ok((name, uuid))
    }

    /// Its memory. What this process has in its pool and does not use counts as available.
    pub(crate) fn memory(&self) -> Result<GpuMemory> {
        let (free, total) = self.check(self.context.mem_get_info())?;
        let reserved = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
        let used = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        let (reserved, used) = (self.pool(reserved)?, self.pool(used)?);
        Ok(GpuMemory {
            available: free as u64 + reserved.saturating_sub(used),
            total: total as u64,
        })
    }

    fn pool(&self, attribute: sys::CUmemPool_attribute) -> Result<u64> {
        let mut value = 0_u64;
        // SAFETY: the attribute is a u64, which lives through the call.
        let asked = unsafe {
            result::device::get_default_mem_pool(self.context.cu_device()).and_then(|pool| {
                sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()).result()
            })
        };
        self.check(asked)?;
        Ok(value)
    }

    fn check<T>(&self, done: std::result::Result<T, DriverError>) -> Result<T> {
        done.map_err(|error| super::failed(self.context.ordinal(), &error))
    }
}

/// Gives back what earlier engines of this process have left in the pool, and forgets how much they
/// had at most.
pub(super) fn give_back(context: &Arc<CudaContext>) -> std::result::Result<(), DriverError> {
    context.synchronize()?;
    // SAFETY: the device is the context's; memory that is in use stays.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        sys::cuMemPoolTrimTo(pool, 0).result()?;
    }
    forget_most(context)
}

/// Counts the most memory in use from now on.
pub(super) fn forget_most(context: &Arc<CudaContext>) -> std::result::Result<(), DriverError> {
    let mut nothing = 0_u64;
    let most = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the attribute is a u64, which lives through the call; 0 is the one value that may be
    // set.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        result::mem_pool::set_attribute(pool, most, (&raw mut nothing).cast())
    }
}
