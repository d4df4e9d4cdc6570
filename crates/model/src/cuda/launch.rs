//! The kernels: compiled when an engine is made, found by name, and launched in the engine's one stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaFunction, result};
use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};

use super::array::{Array, Element};
use super::heads::tiles_room;
use super::{Cuda, card};
use crate::error::{Error, Result};

const COMMON: &str = include_str!("kernels/common.cuh");

/// The kernel files, and the kernels of each: a name ends with `_` for each element type, with `*` for those by eights too, with
/// `#` for each 16-bit type and head size of tiles.
const FILES: [(&str, &str, &[&str]); 6] = [
    (
        "rows.cu",
        include_str!("kernels/rows.cu"),
        &["gather*", "scatter*", "layer_norm*", "layer_norm_backward*"],
    ),
    (
        "values.cu",
        include_str!("kernels/values.cu"),
        &[
            "add_scaled*",
            "activate*",
            "activate_backward*",
            "dropout*",
            "from_f32_",
            "to_f32_",
        ],
    ),
    (
        "learning.cu",
        include_str!("kernels/learning.cu"),
        &[
            "cross_entropy_",
            "add_losses",
            "squares",
            "scale_flat",
            "adamw",
        ],
    ),
    (
        "heads.cu",
        include_str!("kernels/heads.cu"),
        &["turn*", "attend_", "attend_backward_", "append_"],
    ),
    (
        "tiles.cu",
        include_str!("kernels/tiles.cu"),
        &["tile_forward#", "tile_queries#", "tile_keys_and_values#"],
    ),
    (
        "quantized.cu",
        include_str!("kernels/quantized.cu"),
        &["nf4_", "nested", "int8_"],
    ),
];

/// The file for cards that have 8-bit floats.
const FP8_FILE: (&str, &str, &[&str]) = (
    "fp8.cu",
    include_str!("kernels/fp8.cu"),
    &["to_fp8_", "from_fp8_", "turn_codes"],
);

/// Threads of a block, where nothing speaks for another count.
const THREADS: usize = 256;

/// A kernel's argument: its bits, in the lowest bytes.
#[derive(Clone, Copy)]
pub(super) struct Arg(u64);

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

/// Taken by `int` as well as by `u64`.
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

/// Compiles all kernels for a card.
pub(super) fn compile(context: &Arc<CudaContext>) -> Result<HashMap<String, CudaFunction>> {
    let failed =
        |file: &str, reason: String| Error::device(format!("cuda, kernels {file}"), reason);
    let mut functions = HashMap::new();
    let with_fp8 = card::has_fp8(context)?.then_some((FP8_FILE, "compute_89"));
    let files = FILES.into_iter().map(|file| (file, "compute_80"));
    for ((file, source, names), arch) in files.chain(with_fp8) {
        let options = CompileOptions {
            arch: Some(arch),
            name: Some(file.to_owned()),
            ..CompileOptions::default()
        };
        let ptx =
            compile_ptx_with_opts(format!("{COMMON}\n{source}"), options).map_err(|error| {
                let reason = match &error {
                    CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
                    other => format!("{other:?}"),
                };
                failed(file, reason)
            })?;
        let module = context
            .load_module(ptx)
            .map_err(|error| failed(file, format!("{error:?}")))?;
        for name in names.iter().flat_map(|name| variants(name)) {
            let function = module.load_function(&name).and_then(|function| {
                if file == "tiles.cu" {
                    let bytes = tiles_room(2, 128) as i32;
                    function.set_attribute(
                        Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                        bytes,
                    )?;
                    // As much of the cache as shared memory as there can be, so that several blocks fit.
                    function.set_attribute(
                        Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                        100,
                    )?;
                }
                Ok(function)
            });
            let function = function.map_err(|error| failed(file, format!("{name}: {error:?}")))?;
            functions.insert(name, function);
        }
    }
    Ok(functions)
}

/// The full names that one of [`FILES`]'s stands for.
fn variants(name: &str) -> Vec<String> {
    let types = ["f32", "bf16", "f16"];
    if let Some(stem) = name.strip_suffix('*') {
        let named = |t| [1, 8].map(|count| format!("{stem}_{t}_{count}"));
        types.into_iter().flat_map(named).collect()
    } else if let Some(stem) = name.strip_suffix('#') {
        let named = |t| [64, 128].map(|size| format!("{stem}_{t}_{size}"));
        types[1..].iter().flat_map(named).collect()
    } else if name.ends_with('_') {
        types.map(|t| format!("{name}{t}")).to_vec()
    } else {
        vec![name.to_owned()]
    }
}

impl Cuda {
    /// A kernel's name for a type, and if it exists so, for single values or eights.
    pub(super) fn kernel(&self, stem: &str, element: Element, by_eights: Option<bool>) -> String {
        let name = element.name();
        match by_eights {
            None => format!("{stem}_{name}"),
            Some(true) => format!("{stem}_{name}_8"),
            Some(false) => format!("{stem}_{name}_1"),
        }
    }

    /// Launches a kernel with a thread for each of so many values.
    pub(super) fn launch_values(&self, kernel: &str, count: usize, args: &[Arg]) -> Result<()> {
        self.launch(kernel, (count.div_ceil(THREADS), 1), THREADS, args)
    }

    /// Launches a kernel with a warp for each of so many rows.
    pub(super) fn launch_rows(&self, kernel: &str, rows: usize, args: &[Arg]) -> Result<()> {
        self.launch(kernel, (rows.div_ceil(4), 1), 128, args)
    }

    /// Launches a kernel over a grid of blocks.
    pub(super) fn launch(
        &self,
        kernel: &str,
        grid: (usize, usize),
        threads: usize,
        args: &[Arg],
    ) -> Result<()> {
        self.launch_in(0, kernel, grid, threads, args)
    }

    /// The same with `room` bytes of shared memory for each block.
    pub(super) fn launch_in(
        &self,
        room: usize,
        kernel: &str,
        (width, height): (usize, usize),
        threads: usize,
        args: &[Arg],
    ) -> Result<()> {
        if width == 0 || height == 0 {
            return Ok(());
        }
        let function = self
            .functions
            .get(kernel)
            .ok_or_else(|| Error::device("cuda", format!("has no kernel {kernel}")))?;
        let mut pointers: Vec<*mut c_void> = args
            .iter()
            .map(|arg| std::ptr::from_ref(&arg.0).cast_mut().cast())
            .collect();
        self.check(self.context.bind_to_thread())?;
        let _measured = self.measure(kernel);
        // SAFETY: every caller gives the arguments that its kernel declares, in order; buffers are freed in the same stream,
        // so after the kernel; and no kernel reaches beyond the shapes that it is given.
        let launched = unsafe {
            result::launch_kernel(
                function.cu_function(),
                (width as u32, height as u32, 1),
                (threads as u32, 1, 1),
                room as u32,
                self.stream.cu_stream(),
                &mut pointers,
            )
        };
        self.check(launched)
    }
}
