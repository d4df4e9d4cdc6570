//! Launches of kernels in the engine's one stream.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys;

use super::array::{Array, Element};
use super::context::Cuda;
use super::kernels::waits_for_results;
use crate::activation::Activation;
use crate::error::{Error, Result};

/// Threads of a block, unless a kernel needs another number.
const THREADS: usize = 256;

/// The blocks of a launch.
pub(super) struct Grid {
    pub(super) blocks: [usize; 3],
    /// Blocks along the first axis that share their memory.
    pub(super) cluster: usize,
    pub(super) threads: usize,
    /// Dynamic shared memory in bytes per block.
    pub(super) shared_bytes: usize,
    /// Whether it may start before the kernel before has ended, if it waits for its results.
    pub(super) early: bool,
}

/// A kernel's argument: its bits, in the lowest bytes.
#[derive(Clone, Copy)]
pub(super) struct Arg(u64);

impl Arg {
    /// The pointer that a launch takes.
    pub(super) fn pointer(&self) -> *mut c_void {
        ptr::from_ref(&self.0).cast_mut().cast()
    }
}

impl From<&Array> for Arg {
    fn from(array: &Array) -> Self {
        Self(array.address())
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

/// For a parameter of type `int` or `u64`.
impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self(value as u64)
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self(value.into())
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self(value.to_bits().into())
    }
}

impl Cuda {
    /// A kernel's name for a type. `vectorized` picks the variant for eight values at once or that
    /// for one value; it is `None` for a kernel without variants.
    pub(super) fn kernel(&self, stem: &str, element: Element, vectorized: Option<bool>) -> String {
        let name = element.name();
        match vectorized {
            None => format!("{stem}_{name}"),
            Some(true) => format!("{stem}_{name}_8"),
            Some(false) => format!("{stem}_{name}_1"),
        }
    }

    /// Launches one thread per value.
    pub(super) fn launch_values(&self, kernel: &str, count: usize, args: &[Arg]) -> Result<()> {
        self.launch(kernel, (count.div_ceil(THREADS), 1), THREADS, args)
    }

    /// Launches one warp per row.
    pub(super) fn launch_rows(&self, kernel: &str, rows: usize, args: &[Arg]) -> Result<()> {
        self.launch(kernel, (rows.div_ceil(4), 1), 128, args)
    }

    /// Launches a grid of blocks.
    pub(super) fn launch(
        &self,
        kernel: &str,
        grid: (usize, usize),
        threads: usize,
        args: &[Arg],
    ) -> Result<()> {
        self.launch_in(0, kernel, grid, threads, args)
    }

    /// [`Cuda::launch`] with dynamic shared memory, in bytes per block.
    pub(super) fn launch_in(
        &self,
        shared_bytes: usize,
        kernel: &str,
        (width, height): (usize, usize),
        threads: usize,
        args: &[Arg],
    ) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let grid = Grid {
            blocks: [width, height, 1],
            cluster: 1,
            threads,
            shared_bytes,
            early: true,
        };
        self.launch_grid(kernel, &grid, &mut pointers)
    }

    /// Launches a grid; `args` are pointers to a kernel's arguments.
    pub(super) fn launch_grid(
        &self,
        kernel: &str,
        grid: &Grid,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let function = self
            .functions
            .get(kernel)
            .ok_or_else(|| Error::device("cuda", format!("has no kernel {kernel}")))?;
        let mut attributes = Vec::new();
        if grid.cluster > 1 {
            let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
            value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                x: grid.cluster as u32,
                y: 1,
                z: 1,
            };
            attributes.push(sys::CUlaunchAttribute {
                id,
                pad: [0; 4],
                value,
            });
        }
        if grid.early && self.overlap.is_some() && waits_for_results(kernel) {
            let id =
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
            value.programmaticStreamSerializationAllowed = 1;
            attributes.push(sys::CUlaunchAttribute {
                id,
                pad: [0; 4],
                value,
            });
        }
        let [width, height, depth] = grid.blocks.map(|blocks| blocks as u32);
        let config = sys::CUlaunchConfig {
            gridDimX: width,
            gridDimY: height,
            gridDimZ: depth,
            blockDimX: grid.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes as u32,
            hStream: self.stream().cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        self.check(self.context.bind_to_thread())?;
        #[cfg(feature = "bench")]
        let _recording = self.recorder.launch(self.stream(), kernel);
        // SAFETY: every caller passes the arguments that its kernel declares, in order; buffers are
        // freed in the same stream, and therefore after the kernel; no kernel accesses memory
        // outside the shapes that it is given; a kernel that may start early waits by itself.
        let launched = unsafe {
            let function = function.cu_function();
            sys::cuLaunchKernelEx(
                &raw const config,
                function,
                args.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.check(launched.result())
    }

    /// Launches one warp per row. The kernel reads eight values at once if all matrices allow it.
    pub(super) fn by_rows(
        &self,
        stem: &str,
        arrays: &[&Array],
        rows: usize,
        args: &[Arg],
    ) -> Result<()> {
        let kernel = self.kernel(stem, arrays[0].element, Some(all_vectorized(arrays)));
        self.launch_rows(&kernel, rows, args)
    }

    /// [`Cuda::by_rows`] with one block per row.
    pub(super) fn by_blocks(
        &self,
        stem: &str,
        arrays: &[&Array],
        (rows, threads): (usize, usize),
        args: &[Arg],
    ) -> Result<()> {
        let kernel = self.kernel(stem, arrays[0].element, Some(all_vectorized(arrays)));
        self.launch(&kernel, (rows, 1), threads, args)
    }

    /// [`Cuda::by_rows`] with one thread per value, or per eight values.
    pub(super) fn by_values(
        &self,
        stem: &str,
        arrays: &[&Array],
        count: usize,
        args: &[Arg],
    ) -> Result<()> {
        let vectorized = all_vectorized(arrays);
        let kernel = self.kernel(stem, arrays[0].element, Some(vectorized));
        self.launch_values(&kernel, if vectorized { count / 8 } else { count }, args)
    }

    /// Launches a kernel that dequantizes a matrix. A thread has four packs of eight values, or
    /// `few` values of a matrix that cannot be read eight values at once.
    pub(super) fn launch_dequantizing(
        &self,
        stem: &str,
        out: &Array,
        few: usize,
        args: &[Arg],
    ) -> Result<()> {
        let vectorized = out.is_vectorized();
        let kernel = self.kernel(stem, out.element, Some(vectorized));
        let each = if vectorized { 4 * 8 } else { few };
        self.launch_values(&kernel, out.len().div_ceil(each), args)
    }
}

fn all_vectorized(arrays: &[&Array]) -> bool {
    arrays.iter().all(|array| array.is_vectorized())
}

/// The id of an activation in the kernels.
pub(super) fn activation_id(kind: Activation) -> usize {
    match kind {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
        Activation::Relu => 2,
        Activation::Silu => 3,
    }
}
