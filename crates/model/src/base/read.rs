//! The files of a base folder: which it has, and the tensors in its weight files.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, pickle};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::float::Float;
use crate::mapped::Bytes;
use crate::names;
use crate::stored::Floats;

/// The longest header of a safetensors file that is read; the largest models need a small part.
const HEADER_LIMIT: u64 = 16 << 20;

/// Names under which a base folder has its SentencePiece model.
const TOKENIZER_FILES: [&str; 2] = ["spiece.model", "tokenizer.model"];

/// The SentencePiece model in a base's folder, if it has one.
#[must_use]
pub fn tokenizer_file(dir: &Path) -> Option<PathBuf> {
    let mut candidates = TOKENIZER_FILES.iter().map(|name| dir.join(name));
    candidates.find(|path| path.exists())
}

/// The settings of generation in a base's folder, if it has them.
/// The names of the files that transformers keeps beside a tokenizer.
const TOKENIZER_SETTINGS: [&str; 4] = [
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// The files beside the tokenizer that the folder has.
pub(super) fn tokenizer_settings(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let files = TOKENIZER_SETTINGS.into_iter().map(|name| dir.join(name));
    files
        .filter(|path| path.exists())
        .collect::<Vec<_>>()
        .into_iter()
}

pub(super) fn generation_file(dir: &Path) -> Option<PathBuf> {
    Some(dir.join("generation_config.json")).filter(|path| path.exists())
}

pub(crate) fn file(path: &Path) -> Result<Vec<u8>> {
    togi_common::file::read(path).map_err(|e| Error::file(path, e))
}

/// The names of the folder's weight files.
pub(super) fn weight_files(dir: &Path) -> Result<Vec<String>> {
    for single in ["model.safetensors", "pytorch_model.bin"] {
        let index = dir.join(format!("{single}.index.json"));
        if dir.join(single).exists() {
            return Ok(vec![single.to_owned()]);
        }
        if index.exists() {
            return shards(&index);
        }
    }
    let reason = "has no model.safetensors, model.safetensors.index.json or pytorch_model.bin";
    Err(Error::format(
        format!("base folder {}", dir.display()),
        reason,
    ))
}

fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let what = index.display().to_string();
    let Index { weight_map } =
        serde_json::from_slice(&file(index)?).map_err(|source| Error::Json {
            what: what.clone(),
            source,
        })?;
    let mut files: Vec<_> = weight_map.into_values().collect();
    files.sort();
    files.dedup();
    if let Some(bad) = files
        .iter()
        .find(|name| name.starts_with('.') || name.contains(['/', '\\']))
    {
        return Err(Error::format(
            what,
            format!("names {bad:?}, which is no file of the folder"),
        ));
    }
    if files.is_empty() {
        Err(Error::format(what, "names no file"))
    } else {
        Ok(files)
    }
}

/// A tensor of a weight file.
pub(super) enum Entry<'a> {
    /// Floats in the mapped file.
    Floats(Floats),
    /// Finite values that had to be decoded, and their type in the file.
    Values(Tensor, Float),
    /// Another type, as quantized folders have them.
    Other(TensorView<'a>),
}

/// Visits a weight file's tensors except the buffers of old checkpoints, and returns its bytes.
pub(super) fn weights(
    path: &Path,
    visit: &mut impl FnMut(String, Entry<'_>) -> Result<()>,
) -> Result<Bytes> {
    let bytes = Bytes::map(path)?;
    let is_pickle = path.extension().is_some_and(|extension| extension == "bin");
    if is_pickle {
        for (name, float, tensor) in pickled(path)? {
            visit(name, Entry::Values(tensor, float))?;
        }
    } else {
        plain(path, &bytes, visit)?;
    }
    Ok(bytes)
}

/// Whether the name is one of the constant buffers that checkpoints of 2023 carry.
fn is_old_buffer(name: &str) -> bool {
    let name = names::of_base(name);
    name.starts_with("gpt_neox.layers.")
        && [
            ".attention.bias",
            ".attention.masked_bias",
            ".attention.rotary_emb.inv_freq",
        ]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

fn plain(
    path: &Path,
    bytes: &Bytes,
    visit: &mut impl FnMut(String, Entry<'_>) -> Result<()>,
) -> Result<()> {
    let broken = |reason: String| Error::format(path.display().to_string(), reason);
    let header = bytes.first_chunk::<8>().map(|len| u64::from_le_bytes(*len));
    if header.is_none_or(|len| len > HEADER_LIMIT) {
        return Err(broken(format!(
            "its header is missing or over {HEADER_LIMIT} bytes"
        )));
    }
    let file = SafeTensors::deserialize(bytes).map_err(|e| broken(e.to_string()))?;
    for (name, view) in file.iter().filter(|(name, _)| !is_old_buffer(name)) {
        let entry = match Float::from_dtype(view.dtype()) {
            Some(float) => Entry::Floats(Floats {
                float,
                shape: view.shape().to_vec(),
                bytes: bytes.part(view.data()),
            }),
            None if view.dtype() == Dtype::F64 => {
                let values = Tensor::from_vec(values(name, &view)?, view.shape(), &Device::Cpu)?;
                Entry::Values(values, Float::F32)
            }
            None => Entry::Other(view),
        };
        visit(name.to_owned(), entry)?;
    }
    Ok(())
}

/// A tensor's values, which must be f64, f32, fp16 or bf16 and finite. Those in f64 become the
/// nearest f32, as in torch.
pub(crate) fn values(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let values = match view.dtype() {
        Dtype::F64 => {
            let wide = view.data().as_chunks::<8>().0.iter();
            let wide = wide.map(|&bytes| f64::from_le_bytes(bytes));
            if wide
                .clone()
                .any(|value| value.is_finite() && !(value as f32).is_finite())
            {
                let reason = "has values beyond the range of f32";
                return Err(Error::format(format!("tensor {name}"), reason));
            }
            wide.map(|value| value as f32).collect()
        }
        other => Float::from_dtype(other)
            .ok_or_else(|| no_float(name, &other))?
            .values(view.data()),
    };
    finite(name, &values)?;
    Ok(values)
}

/// The error of a tensor that should hold floats and does not.
pub(super) fn no_float(name: &str, dtype: &impl Debug) -> Error {
    Error::format(
        format!("tensor {name}"),
        format!("{dtype:?} is not a float type that is read: f64, f32, fp16 and bf16 are"),
    )
}

pub(super) fn finite(name: &str, values: &[f32]) -> Result<()> {
    if values.iter().all(|value| value.is_finite()) {
        Ok(())
    } else {
        Err(Error::NotFinite(name.to_owned()))
    }
}

/// The tensors of a file that torch wrote, in f32 and with their type in the file (f32 where it is
/// f64), without the buffers of old checkpoints.
pub(crate) fn pickled(path: &Path) -> Result<Vec<(String, Float, Tensor)>> {
    togi_common::file::open(path).map_err(|e| Error::file(path, e))?;
    let broken = |e: candle_core::Error| Error::format(path.display().to_string(), e.to_string());
    let file = pickle::PthTensors::new(path, None).map_err(broken)?;
    // Sorted, because the reader's own order is a hash map's.
    let mut names: Vec<_> = file
        .tensor_infos()
        .keys()
        .filter(|name| !is_old_buffer(name))
        .collect();
    names.sort();
    let mut tensors = Vec::new();
    for name in names {
        let tensor = file
            .get(name)
            .map_err(broken)?
            .ok_or_else(|| Error::Missing(name.clone()))?;
        let float = match tensor.dtype() {
            DType::F64 | DType::F32 => Float::F32,
            DType::F16 => Float::Fp16,
            DType::BF16 => Float::Bf16,
            other => return Err(no_float(name, &other)),
        };
        let values = tensor
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        finite(name, &values)?;
        let tensor = Tensor::from_vec(values, tensor.dims(), &Device::Cpu)?;
        tensors.push((name.clone(), float, tensor));
    }
    Ok(tensors)
}

/// Whether two tensors have the same shape and values.
pub(super) fn same(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.dims() == b.dims()
        && a.flatten_all()?.to_vec1::<f32>()? == b.flatten_all()?.to_vec1::<f32>()?)
}
