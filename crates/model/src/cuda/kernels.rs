//! The kernels, compiled when an engine is made and found by name.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaFunction, DriverError};
use cudarc::nvrtc::result::{self as nvrtc, NvrtcError};
use cudarc::nvrtc::{Ptx, sys};
use parking_lot::Mutex;
use rayon::prelude::*;

use super::gpu;
use super::shared_memory::{MatrixUnits, largest_tile_bytes};
use crate::error::{Error, Result};
use crate::precision::Precision;

/// A file of kernels, with the files that it includes.
struct File {
    name: &'static str,
    source: &'static str,
    /// The names of its kernels, with placeholders of [`CHOICES`].
    kernels: &'static [&'static str],
}

macro_rules! file {
    ($name:literal $(after $($before:literal)+)?, $($kernel:literal)*) => {
        File {
            name: $name,
            source: concat!(
                include_str!("kernels/common.cuh"),
                $($(include_str!(concat!("kernels/", $before)),)+)?
                include_str!(concat!("kernels/", $name))
            ),
            kernels: &[$($kernel),*],
        }
    };
}

/// `lora.cu` for a rank.
macro_rules! lora {
    ($rank:literal $($gradient:literal)?) => {
        File {
            name: concat!("lora.cu of rank ", $rank),
            source: concat!(
                "#define RANK ", $rank, "\n",
                include_str!("kernels/common.cuh"),
                include_str!("kernels/matrix.cuh"),
                include_str!("kernels/lora.cu")
            ),
            kernels: &[
                concat!("lora_a_{h}_", $rank),
                concat!("lora_b_{h}_", $rank),
                concat!("lora_a_backward_{h}_", $rank),
                concat!("lora_b_backward_{h}_", $rank),
                $($gradient),*
            ],
        }
    };
}

const FILES: [File; 15] = [
    file!("rows.cu" after "norm.cuh", "gather_{t}_{v}" "scatter_{t}_{v}" "layer_norm_{t}_{v}" "layer_norm_backward_{t}_{v}"
        "cross_entropy_{t}_{v}"),
    file!(
        "values.cu" after "activation.cuh",
        "add_{t}_{v}" "activate_{t}_{v}" "activate_backward_{t}_{v}" "dropout_{t}_{v}" "from_f32_{t}" "to_f32_{t}"
    ),
    file!("learning.cu", "add_losses" "squares" "scale_flat" "adamw"),
    file!("heads.cu", "rotate_{t}_{v}" "attend_{t}" "attend_backward_{t}"),
    file!(
        "pages.cu" after "factors.cuh",
        "append_pages_{t}" "attend_pages_{t}_{l}" "attend_answers_{t}_{l}" "combine_splits_{t}"
    ),
    file!("highest.cu", "highest_{t}_{v}"),
    file!("scores.cu" after "norm.cuh", "scores_{t}_{v}"),
    file!("adapters.cu" after "factors.cuh", "rows_lora_a_{t}" "rows_lora_b_{t}"),
    file!(
        "tiles.cu" after "matrix.cuh" "tiles.cuh",
        "tile_forward_{h}_{d}" "tile_pages_{h}_{d}" "tile_queries_{h}_{d}" "tile_keys_and_values_{h}_{d}"
    ),
    lora!(8 "lora_gradient_{h}_{c}_8"),
    lora!(16 "lora_gradient_{h}_{c}_16"),
    lora!(32),
    lora!(64),
    file!("quantized.cu", "nf4_{t}_{v}" "int8_{t}_{v}"),
    file!("quantize.cu", "flaws_{t}" "nf4_pack_{t}" "mean_scale" "nest" "int8_rows_{t}"),
];

/// `few_rows.cu` for a form of weights.
macro_rules! few_rows {
    ($format:literal $kernel:literal) => {
        File {
            name: concat!("few_rows.cu of form ", $format),
            source: concat!(
                "#define FORMAT ",
                $format,
                "\n",
                include_str!("kernels/common.cuh"),
                include_str!("kernels/matrix.cuh"),
                include_str!("kernels/activation.cuh"),
                include_str!("kernels/factors.cuh"),
                include_str!("kernels/few_rows.cu")
            ),
            kernels: &[$kernel],
        }
    };
}

/// The products of few rows, for GPUs whose kernels overlap: with unquantized weights, and with
/// those of a precision.
const FEW_ROWS: [(Option<Precision>, File); 4] = [
    (None, few_rows!(0 "few_rows_full_{h}_{n}")),
    (Some(Precision::Int8), few_rows!(1 "few_rows_int8_{h}_{n}")),
    (Some(Precision::Fp8), few_rows!(2 "few_rows_fp8_{h}_{n}")),
    (Some(Precision::Nf4), few_rows!(3 "few_rows_nf4_{h}_{n}")),
];

/// The file for GPUs that have 8-bit floats.
const FP8_FILE: File = file!(
    "fp8.cu" after "activation.cuh" "norm.cuh",
    "norm_to_fp8_bf16" "norm_backward_to_fp8_bf16" "to_fp8_{t}_{p}" "activate_to_fp8_bf16_{p}" "activate_backward_to_fp8_bf16_{p}" "from_fp8_{t}_{v}" "add_bias_{t}_{v}"
    "transpose_codes"
);

/// The placeholders in kernels' names: types, 16-bit types, values at once, head sizes of tiles,
/// packs of values of a thread, columns of a lane in gradients of LoRA, lanes that share a key (1
/// for heads of any dimension), eights of rows.
const CHOICES: [(&str, &[&str]); 8] = [
    ("{t}", &["f32", "bf16", "f16"]),
    ("{h}", &["bf16", "f16"]),
    ("{v}", &["1", "8"]),
    ("{d}", &["64", "128"]),
    ("{p}", &["1", "2", "4", "8"]),
    ("{c}", &["4", "8"]),
    ("{l}", &["1", "8", "16", "32"]),
    ("{n}", &["1", "4", "8"]),
];

/// The stems of the kernels that wait for the results of the kernels before them, so that they may
/// be launched before those have ended.
const WAITING: [&str; 14] = [
    "gather",
    "highest",
    "layer_norm",
    "activate",
    "append_pages",
    "attend_pages",
    "attend_answers",
    "combine_splits",
    "rows_lora_a",
    "rows_lora_b",
    "few_rows_full",
    "few_rows_int8",
    "few_rows_fp8",
    "few_rows_nf4",
];

/// Compiles the kernels for a base's precision on a GPU.
pub(super) fn compile(
    context: &Arc<CudaContext>,
    precision: Precision,
) -> Result<HashMap<String, CudaFunction>> {
    let (major, minor) = gpu::capability(context)?;
    let units = gpu::matrix_units(context)?;
    let with_fp8 = gpu::has_fp8(context)?.then_some(FP8_FILE);
    let few_rows = FEW_ROWS
        .into_iter()
        .filter(|(form, _)| form.is_none_or(|form| form == precision));
    let overlaps = gpu::overlaps(context)?;
    let with_few_rows = few_rows.filter(|_| overlaps).map(|(_, file)| file);
    let files: Vec<File> = FILES
        .into_iter()
        .chain(with_fp8)
        .chain(with_few_rows)
        .collect();
    // Instructions of one generation alone need this suffix.
    let suffix = match units {
        MatrixUnits::Warp => "",
        MatrixUnits::Warpgroup => "a",
    };
    let images = images(&files, &format!("sm_{major}{minor}{suffix}"))?;
    let mut functions = HashMap::new();
    for (file, image) in files.iter().zip(images) {
        let failed = |error: DriverError| file.failed(format!("{error:?}"));
        let loaded = context.load_module(Ptx::from_binary(image));
        let module = loaded.map_err(failed)?;
        for name in file.kernels.iter().flat_map(|name| variants(name)) {
            let function = module.load_function(&name).map_err(failed)?;
            let bytes = match file.name {
                "tiles.cu" => Some(largest_tile_bytes(units)),
                name if name.starts_with("few_rows.cu") => Some(gpu::shared_bytes(context)?),
                _ => None,
            };
            if let Some(bytes) = bytes {
                let bytes = bytes as i32;
                let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // The largest possible share of the cache becomes shared memory, so that several
                // blocks fit.
                let share = Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
                for (attribute, value) in [(most, bytes), (share, 100)] {
                    function.set_attribute(attribute, value).map_err(failed)?;
                }
            }
            functions.insert(name, function);
        }
    }
    Ok(functions)
}

/// The files compiled for an architecture (cubin), each once in a process.
fn images(files: &[File], arch: &str) -> Result<Vec<Vec<u8>>> {
    type Key = (String, &'static str);
    static COMPILED: Mutex<BTreeMap<Key, Vec<u8>>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock();
    let key = |file: &File| (arch.to_owned(), file.name);
    let missing: Vec<&File> = files
        .iter()
        .filter(|file| !compiled.contains_key(&key(file)))
        .collect();
    let made: Result<Vec<_>> = missing
        .into_par_iter()
        .map(|file| Ok((key(file), file.compiled(arch)?)))
        .collect();
    compiled.extend(made?);
    let images = files.iter().filter_map(|file| compiled.get(&key(file)));
    Ok(images.cloned().collect())
}

impl File {
    fn failed(&self, reason: String) -> Error {
        Error::device(format!("cuda, kernels {}", self.name), reason)
    }

    fn compiled(&self, arch: &str) -> Result<Vec<u8>> {
        let failed = |error: NvrtcError| self.failed(format!("{error:?}"));
        let (source, name) = (CString::new(self.source), CString::new(self.name));
        let (Ok(source), Ok(name)) = (source, name) else {
            return Err(self.failed("has a byte 0".into()));
        };
        let program = nvrtc::create_program(&source, Some(&name)).map_err(failed)?;
        // SAFETY: the program lives until it is destroyed, and only this thread uses it.
        unsafe {
            let image = image(program, arch);
            let log = nvrtc::get_program_log(program);
            nvrtc::destroy_program(program).map_err(failed)?;
            image.map_err(|error| match log {
                Ok(log) => self.failed(log.iter().map(|&c| char::from(c as u8)).collect()),
                Err(_) => failed(error),
            })
        }
    }
}

/// Compiles a program for an architecture.
///
/// # Safety
/// The program lives.
unsafe fn image(
    program: sys::nvrtcProgram,
    arch: &str,
) -> std::result::Result<Vec<u8>, NvrtcError> {
    // SAFETY: the buffer has the size that the library asks for.
    unsafe {
        let options = [
            format!("--gpu-architecture={arch}"),
            // Without it, this compiler, unlike nvcc, takes closures for code of the host.
            "--device-as-default-execution-space".to_owned(),
        ];
        nvrtc::compile_program(program, &options)?;
        let mut bytes = 0;
        sys::nvrtcGetCUBINSize(program, &raw mut bytes).result()?;
        let mut image = vec![0_u8; bytes];
        sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result()?;
        Ok(image)
    }
}

/// Whether a kernel waits for the results of those before it.
pub(super) fn waits_for_results(kernel: &str) -> bool {
    let types = ["_f32", "_bf16", "_f16"];
    let end = types.iter().find_map(|name| kernel.find(name));
    end.is_some_and(|end| WAITING.contains(&&kernel[..end]))
}

/// The names that a name with placeholders stands for.
fn variants(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    for (placeholder, choices) in CHOICES
        .iter()
        .filter(|(placeholder, _)| name.contains(placeholder))
    {
        let chosen = |name: String| {
            choices
                .iter()
                .map(move |choice| name.replace(placeholder, choice))
        };
        names = names.into_iter().flat_map(chosen).collect();
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles without a GPU.
    fn compile_for(arch: &str, files: &[File]) {
        let images = images(files, arch).unwrap();
        assert_eq!(images.len(), files.len());
        for (file, image) in files.iter().zip(images) {
            for name in file.kernels.iter().flat_map(|name| variants(name)) {
                let symbol = [b"\0".as_slice(), name.as_bytes(), b"\0"].concat();
                let found = image.windows(symbol.len()).any(|bytes| bytes == symbol);
                assert!(found, "{} has no {}", file.name, name);
            }
        }
    }

    #[test]
    fn every_kernel_compiles_for_gpus_with_and_without_8_bit_floats() {
        compile_for("sm_80", &FILES);
        let few_rows = FEW_ROWS.into_iter().map(|(_, file)| file);
        let all: Vec<File> = FILES
            .into_iter()
            .chain([FP8_FILE])
            .chain(few_rows)
            .collect();
        for arch in ["sm_90a", "sm_120"] {
            compile_for(arch, &all);
        }
    }
}
