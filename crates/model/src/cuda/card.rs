//! Finding a card and making it ready; refusals with the figures that decide them.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use crate::base::Base;
use crate::error::{Error, Result};
use crate::precision::Precision;

/// The driver's interface that cuBLASLt and the compiler of kernels need: CUDA 13.0.
const OLDEST_DRIVER: i32 = 13_000;
/// The first generation with bf16 in its matrix units.
const OLDEST_CARD: (i32, i32) = (8, 0);
/// The first generation with 8-bit floats.
const OLDEST_FP8_CARD: (i32, i32) = (8, 9);
/// What a pass needs at least beside the weights.
const RESERVE: u64 = 512 << 20;

/// How messages call a card.
pub(super) fn name(ordinal: usize) -> String {
    format!("cuda:{ordinal}")
}

/// Opens a card.
pub(super) fn open(ordinal: usize) -> Result<Arc<CudaContext>> {
    let refuse = |reason: String| Error::device(name(ordinal), reason);
    let said = |error: DriverError| refuse(format!("the driver says {error:?}"));
    // SAFETY: looking for a library runs its initialisers only, and these are NVIDIA's.
    let present = unsafe {
        [
            ("driver (libcuda)", sys::is_culib_present()),
            (
                "cublasLt of cuda 13",
                cudarc::cublaslt::sys::is_culib_present(),
            ),
            ("nvrtc of cuda 13", cudarc::nvrtc::sys::is_culib_present()),
        ]
    };
    if let Some((missing, _)) = present.iter().find(|(_, found)| !found) {
        return Err(refuse(format!("the library {missing} is not there")));
    }
    result::init().map_err(said)?;
    let mut version = 0;
    // SAFETY: the pointer is to a live integer.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) };
    asked.result().map_err(said)?;
    if version < OLDEST_DRIVER {
        let version_of = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        return Err(refuse(format!(
            "the driver is of cuda {}, {} is needed",
            version_of(version),
            version_of(OLDEST_DRIVER)
        )));
    }
    let count = CudaContext::device_count().map_err(said)?;
    if ordinal >= usize::try_from(count).unwrap_or(0) {
        return Err(refuse(format!("there are {count} cards")));
    }
    let context = CudaContext::new(ordinal).map_err(said)?;
    let capability = context.compute_capability().map_err(said)?;
    if capability < OLDEST_CARD {
        let ((major, minor), (least_major, least_minor)) = (capability, OLDEST_CARD);
        return Err(refuse(format!(
            "compute capability {major}.{minor} is below {least_major}.{least_minor}"
        )));
    }
    Ok(context)
}

/// Whether a card has 8-bit floats.
pub(super) fn has_fp8(context: &Arc<CudaContext>) -> Result<bool> {
    let capability = context.compute_capability();
    let capability = capability.map_err(|error| super::failed(context.ordinal(), &error))?;
    Ok(capability >= OLDEST_FP8_CARD)
}

/// Refuses a base in fp8 on a card that is too old for it.
pub(super) fn check_precision(context: &Arc<CudaContext>, precision: Precision) -> Result<()> {
    if precision != Precision::Fp8 || has_fp8(context)? {
        return Ok(());
    }
    let (major, minor) = OLDEST_FP8_CARD;
    let reason = format!("is too old for fp8, which needs compute capability {major}.{minor}");
    Err(Error::device(name(context.ordinal()), reason))
}

/// Refuses a base that does not fit what is free.
pub(super) fn check_memory(
    context: &Arc<CudaContext>,
    base: &Base,
    float_bytes: u64,
) -> Result<()> {
    let ordinal = context.ordinal();
    let (free, total) = context
        .mem_get_info()
        .map_err(|error| Error::device(name(ordinal), format!("{error:?}")))?;
    let needed = base.device_bytes(float_bytes) + RESERVE;
    if (free as u64) < needed {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        return Err(Error::device(
            name(ordinal),
            format!(
                "{:.1} of {:.1} GiB are free, the base needs {:.1}",
                gib(free as u64),
                gib(total as u64),
                gib(needed)
            ),
        ));
    }
    Ok(())
}

/// The stream that everything runs in; memory that it frees stays with the process.
pub(super) fn stream(context: &Arc<CudaContext>) -> Result<Arc<CudaStream>> {
    let failed = |error: DriverError| Error::device(name(context.ordinal()), format!("{error:?}"));
    let stream = context.new_stream().map_err(failed)?;
    // SAFETY: there is one stream, whose order is all the tracking that is needed; nothing was
    // allocated before.
    unsafe { context.disable_event_tracking() };
    let mut all = u64::MAX;
    // SAFETY: the attribute is a u64, which lives through the call.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).map_err(failed)?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast()).map_err(failed)?;
    }
    Ok(stream)
}

impl super::Cuda {
    /// The most bytes that were in use at once, and all that the card has.
    pub(crate) fn memory(&self) -> Option<(u64, u64)> {
        let (_, total) = self.context.mem_get_info().ok()?;
        let mut most = 0_u64;
        // SAFETY: the attribute is a u64, which lives through the call.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.context.cu_device()).ok()?;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
            sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut most).cast())
                .result()
                .ok()?;
        }
        Some((most, total as u64))
    }
}
