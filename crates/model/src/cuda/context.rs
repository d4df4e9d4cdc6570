//! The state of a GPU's engine. The files that use this one implement its methods.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError};
use parking_lot::Mutex;

use super::array::Element;
use super::gpu;
use super::graphs::Steps;
use super::library::Library;
use super::loading::Loading;
#[cfg(feature = "bench")]
use super::recorder::Recorder;
use super::uploads::Uploads;
use crate::error::Result;

/// A GPU with the stream of its work.
pub(crate) struct Cuda {
    pub(super) context: Arc<CudaContext>,
    pub(super) main_stream: Arc<CudaStream>,
    /// The stream in which passes are recorded.
    pub(super) recording_stream: Arc<CudaStream>,
    /// Held by the pass that uses `steps`.
    pub(super) pass: Mutex<()>,
    pub(super) steps: Mutex<Steps>,
    /// For adapters, one at a time.
    pub(super) uploads: Mutex<Uploads>,
    /// The kernels by name.
    pub(super) functions: HashMap<String, CudaFunction>,
    pub(super) library: Library,
    pub(super) overlap: Option<Overlap>,
    /// The type of activations and of weights that are not quantized.
    pub(super) element: Element,
    /// The base that is being loaded; `None` once it is loaded.
    pub(super) loading: Mutex<Option<Loading>>,
    #[cfg(feature = "bench")]
    pub(super) recorder: Recorder,
}

/// Properties of a GPU whose kernels may start before the kernel before them has ended.
pub(super) struct Overlap {
    pub(super) multiprocessors: usize,
    /// The most shared memory of a block, in bytes.
    pub(super) shared_bytes: usize,
}

impl Cuda {
    pub(super) fn check<T>(&self, done: std::result::Result<T, DriverError>) -> Result<T> {
        done.map_err(|error| gpu::failed(self.context.ordinal(), &error))
    }
}
