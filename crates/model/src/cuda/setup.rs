//! Making a GPU ready for a base, and its memory while it computes.

use parking_lot::Mutex;

use super::array::{Buffer, Element};
use super::context::{Cuda, Overlap};
use super::graphs::RECORDING;
use super::library::Library;
#[cfg(feature = "bench")]
use super::recorder::Recorder;
use super::staging::{Failure, Staging};
use super::uploads::Uploads;
use super::{gpu, kernels, pool};
use crate::base::Base;
use crate::error::Result;
use crate::float::Float;
use crate::gpu_limits::GPU_WORKSPACE;

impl Cuda {
    /// A GPU for a base, with activations of a type.
    pub(crate) fn new(ordinal: usize, float: Float, base: &Base) -> Result<Self> {
        let _waiting = RECORDING.read();
        let element = Element::of(float);
        let context = gpu::open(ordinal)?;
        pool::trim(&context).map_err(|error| gpu::failed(ordinal, &error))?;
        gpu::check_precision(&context, base.precision())?;
        gpu::check_memory(&context, base, element.bytes() as u64)?;
        let stream = gpu::stream(&context)?;
        // Pinning memory takes long, and compiling takes longer.
        let (joined, functions) = std::thread::scope(|scope| {
            let pinned = scope.spawn(|| {
                let staging = Staging::start(&context)?;
                Ok::<_, Failure>((staging, Uploads::new(&context)?))
            });
            let functions = kernels::compile(&context, base.precision());
            (pinned.join(), functions)
        });
        let started = joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (staging, uploads) =
            started.map_err(|failure| failure.into_error("staging", ordinal))?;
        let allocated = stream.alloc_zeros::<u8>(GPU_WORKSPACE);
        let workspace = allocated.map_err(|error| gpu::failed(ordinal, &error))?;
        let overlap = if gpu::overlaps(&context)? {
            Some(Overlap {
                multiprocessors: gpu::multiprocessors(&context)?,
                shared_bytes: gpu::shared_bytes(&context)?,
            })
        } else {
            None
        };
        let cuda = Self {
            functions: functions?,
            overlap,
            library: Library::new(Buffer::of(workspace, &stream))?,
            recording_stream: gpu::stream(&context)?,
            context,
            main_stream: stream,
            pass: Mutex::default(),
            steps: Mutex::default(),
            uploads: Mutex::new(uploads),
            element,
            loading: Mutex::new(None),
            #[cfg(feature = "bench")]
            recorder: Recorder::default(),
        };
        // Takes the base's memory from the driver in one piece; it stays in the pool.
        drop(cuda.alloc::<u8>(base.device_bytes(element.bytes() as u64) as usize)?);
        cuda.start_loading(staging, base)?;
        Ok(cuda)
    }

    /// The most bytes in use at once, and the GPU's total.
    pub(crate) fn memory(&self) -> Option<(u64, u64)> {
        let (_, total) = self.context.mem_get_info().ok()?;
        let peak = pool::peak(&self.context).ok()?;
        Some((peak, total as u64))
    }

    /// Counts the most bytes in use from now on.
    pub(crate) fn forget_peak(&self) -> Result<()> {
        self.check(pool::reset_peak(&self.context))
    }
}
