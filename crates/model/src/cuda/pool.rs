//! The driver's memory pool of this process on a GPU.

use cudarc::driver::sys::CUmemPool_attribute as Attribute;
use cudarc::driver::{CudaContext, DriverError, result, sys};

type Result<T> = std::result::Result<T, DriverError>;

/// Bytes that the pool has and nothing uses.
pub(super) fn unused(context: &CudaContext) -> Result<u64> {
    let reserved = get(context, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = get(context, Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Ok(reserved.saturating_sub(used))
}

/// The most bytes in use at once since the peak was last reset.
pub(super) fn peak(context: &CudaContext) -> Result<u64> {
    get(context, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
}

/// Counts the peak from now on.
pub(super) fn reset_peak(context: &CudaContext) -> Result<()> {
    // 0 is the only value that the driver accepts.
    set(context, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
}

/// Keeps freed memory in the pool.
pub(super) fn keep_all(context: &CudaContext) -> Result<()> {
    let threshold = Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    set(context, threshold, u64::MAX)
}

/// Returns the memory that earlier engines of this process left in the pool to the driver, and
/// resets the peak.
pub(super) fn trim(context: &CudaContext) -> Result<()> {
    context.synchronize()?;
    // SAFETY: the device is the context's; memory in use stays.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        sys::cuMemPoolTrimTo(pool, 0).result()?;
    }
    reset_peak(context)
}

fn get(context: &CudaContext, attribute: Attribute) -> Result<u64> {
    let mut value = 0_u64;
    // SAFETY: the attribute is a u64, which lives through the call.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()).result()?;
    }
    Ok(value)
}

fn set(context: &CudaContext, attribute: Attribute, mut value: u64) -> Result<()> {
    // SAFETY: the attribute is a u64, which lives through the call.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut value).cast())
    }
}
