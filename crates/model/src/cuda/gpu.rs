//! A GPU before anything computes on it: opening it, its properties, and the refusals with the
//! figures that decide them.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::pool;
use super::shared_memory::MatrixUnits;
use crate::base::Base;
use crate::error::{Error, Result};
use crate::gpu_limits::GpuMemory;
use crate::precision::Precision;

/// The oldest driver interface for cuBLASLt and the kernels' compiler: CUDA 13.0.
const OLDEST_DRIVER: i32 = 13_000;
/// The first compute capability with bf16 in the matrix units.
const OLDEST_GPU: (i32, i32) = (8, 0);
/// The first compute capability with 8-bit floats.
const OLDEST_FP8_GPU: (i32, i32) = (8, 9);
/// The compute capability of Hopper, whose matrix units work for warpgroups.
const HOPPER: (i32, i32) = (9, 0);
/// Bytes of a block's shared memory that are left for a kernel's own variables.
const OWN_SHARED: usize = 1024;
/// Bytes that a pass needs at least, beside the weights.
const RESERVE: u64 = 512 << 20;

/// An open GPU.
#[derive(Clone)]
pub(crate) struct OpenGpu {
    context: Arc<CudaContext>,
}

impl OpenGpu {
    /// Opens a GPU.
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        let context = open(ordinal)?;
        Ok(Self { context })
    }

    /// The product name and the id.
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

    /// The GPU's memory. What this process has in its pool and does not use counts as available.
    pub(crate) fn memory(&self) -> Result<GpuMemory> {
        let (free, total) = self.check(self.context.mem_get_info())?;
        let unused = self.check(pool::unused(&self.context))?;
        Ok(GpuMemory {
            available: free as u64 + unused,
            total: total as u64,
        })
    }

    fn check<T>(&self, done: std::result::Result<T, DriverError>) -> Result<T> {
        done.map_err(|error| failed(self.context.ordinal(), &error))
    }
}

/// The name of a GPU in messages.
pub(super) fn name(ordinal: usize) -> String {
    format!("cuda:{ordinal}")
}

/// The driver's error as ours.
pub(super) fn failed(ordinal: usize, error: &DriverError) -> Error {
    Error::device(name(ordinal), format!("{error:?}"))
}

/// Opens a GPU.
pub(super) fn open(ordinal: usize) -> Result<Arc<CudaContext>> {
    let refuse = |reason: String| Error::device(name(ordinal), reason);
    let driver_failed = |error: DriverError| refuse(format!("the driver says {error:?}"));
    // SAFETY: looking for a library only runs its initialisers, and these are NVIDIA's.
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
    result::init().map_err(driver_failed)?;
    let mut version = 0;
    // SAFETY: the pointer is to a live integer.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) };
    asked.result().map_err(driver_failed)?;
    if version < OLDEST_DRIVER {
        let version_of = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        return Err(refuse(format!(
            "the driver is of cuda {}, {} is needed",
            version_of(version),
            version_of(OLDEST_DRIVER)
        )));
    }
    let count = CudaContext::device_count().map_err(driver_failed)?;
    if ordinal >= usize::try_from(count).unwrap_or(0) {
        return Err(refuse(format!("there are {count} GPUs")));
    }
    let context = CudaContext::new(ordinal).map_err(driver_failed)?;
    let capability = context.compute_capability().map_err(driver_failed)?;
    if capability < OLDEST_GPU {
        let ((major, minor), (least_major, least_minor)) = (capability, OLDEST_GPU);
        return Err(refuse(format!(
            "compute capability {major}.{minor} is below {least_major}.{least_minor}"
        )));
    }
    Ok(context)
}

/// The compute capability: major and minor.
pub(super) fn capability(context: &CudaContext) -> Result<(i32, i32)> {
    let capability = context.compute_capability();
    capability.map_err(|error| failed(context.ordinal(), &error))
}

/// The kind of matrix units that the kernels are compiled for.
pub(super) fn matrix_units(context: &CudaContext) -> Result<MatrixUnits> {
    Ok(if capability(context)? == HOPPER {
        MatrixUnits::Warpgroup
    } else {
        MatrixUnits::Warp
    })
}

/// Whether a GPU has 8-bit floats.
pub(super) fn has_fp8(context: &CudaContext) -> Result<bool> {
    Ok(capability(context)? >= OLDEST_FP8_GPU)
}

/// Whether a kernel may start before the one before it has ended, and copies to shared memory by
/// itself.
pub(super) fn overlaps(context: &CudaContext) -> Result<bool> {
    Ok(capability(context)? >= HOPPER)
}

/// The shared memory in bytes that a block can have beside a kernel's own variables.
pub(super) fn shared_bytes(context: &CudaContext) -> Result<usize> {
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let bytes = context.attribute(attribute);
    let bytes = bytes.map_err(|error| failed(context.ordinal(), &error))?;
    Ok((bytes as usize).saturating_sub(OWN_SHARED))
}

/// The number of multiprocessors.
pub(super) fn multiprocessors(context: &CudaContext) -> Result<usize> {
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    let count = context.attribute(attribute);
    Ok(count.map_err(|error| failed(context.ordinal(), &error))? as usize)
}

/// Refuses a base in fp8 on a GPU without 8-bit floats.
pub(super) fn check_precision(context: &CudaContext, precision: Precision) -> Result<()> {
    if precision != Precision::Fp8 || has_fp8(context)? {
        return Ok(());
    }
    let (major, minor) = OLDEST_FP8_GPU;
    let reason = format!("is too old for fp8, which needs compute capability {major}.{minor}");
    Err(Error::device(name(context.ordinal()), reason))
}

/// Refuses a base that does not fit into the free memory.
pub(super) fn check_memory(context: &CudaContext, base: &Base, float_bytes: u64) -> Result<()> {
    let ordinal = context.ordinal();
    let memory = context.mem_get_info();
    let (free, total) = memory.map_err(|error| failed(ordinal, &error))?;
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

/// The stream of all work. Memory that it frees stays with the process.
pub(super) fn stream(context: &Arc<CudaContext>) -> Result<Arc<CudaStream>> {
    let driver_failed = |error: DriverError| failed(context.ordinal(), &error);
    let stream = context.new_stream().map_err(driver_failed)?;
    // SAFETY: there is one stream, whose order is all the tracking that is needed; nothing was
    // allocated before.
    unsafe { context.disable_event_tracking() };
    pool::keep_all(context).map_err(driver_failed)?;
    Ok(stream)
}
