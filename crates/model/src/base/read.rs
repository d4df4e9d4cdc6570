//! Weight files: which a folder has, and their tensors as f32.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, pickle};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;

use super::is_old_buffer;
use crate::canonical;
use crate::error::{Error, Result};
use crate::mapped;

/// The longest header of a safetensors file that is looked at; the largest model's is a small part of it.
const HEADER_LIMIT: u64 = 16 << 20;

pub(crate) fn file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::file(path, e))
}

/// The names of the folder's weight files.
pub(super) fn weight_files(dir: &Path) -> Result<Vec<String>> {
    for single in ["model.safetensors", "pytorch_model.bin"] {
        let index = dir.join(format!("{single}.index.json"));
        if dir.join(single).is_file() {
            return Ok(vec![single.to_owned()]);
        }
        if index.is_file() {
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

/// A weight file's SHA-256 (hex) and its tensors in f32, without the buffers of old checkpoints.
pub(super) fn weights(path: &Path) -> Result<(String, Vec<(String, Tensor)>)> {
    let bytes = mapped::map(path)?;
    let digest = canonical::sha256_hex(&bytes);
    let is_pickle = path.extension().is_some_and(|extension| extension == "bin");
    let tensors = if is_pickle {
        pickled(path)?
    } else {
        plain(path, &bytes)?
    };
    Ok((digest, tensors))
}

fn plain(path: &Path, bytes: &[u8]) -> Result<Vec<(String, Tensor)>> {
    let broken = |reason: String| Error::format(path.display().to_string(), reason);
    let header = bytes.first_chunk::<8>().map(|len| u64::from_le_bytes(*len));
    if header.is_none_or(|len| len > HEADER_LIMIT) {
        return Err(broken(format!(
            "its header is missing or over {HEADER_LIMIT} bytes"
        )));
    }
    let file = SafeTensors::deserialize(bytes).map_err(|e| broken(e.to_string()))?;
    let mut tensors = Vec::new();
    for (name, view) in file.iter().filter(|(name, _)| !is_old_buffer(name)) {
        let tensor = Tensor::from_vec(values(name, &view)?, view.shape(), &Device::Cpu)?;
        tensors.push((name.to_owned(), tensor));
    }
    Ok(tensors)
}

/// A tensor's values, which must be f32, fp16 or bf16 and finite.
pub(crate) fn values(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let bytes = view.data();
    let pairs = bytes.as_chunks::<2>().0.iter();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect(),
        Dtype::F16 => pairs
            .map(|&b| half::f16::from_le_bytes(b).to_f32())
            .collect(),
        Dtype::BF16 => pairs
            .map(|&b| half::bf16::from_le_bytes(b).to_f32())
            .collect(),
        other => {
            return Err(Error::format(
                format!("tensor {name}"),
                format!("{other:?} is not a float type"),
            ));
        }
    };
    finite(name, &values)?;
    Ok(values)
}

fn finite(name: &str, values: &[f32]) -> Result<()> {
    if values.iter().all(|value| value.is_finite()) {
        Ok(())
    } else {
        Err(Error::NotFinite(name.to_owned()))
    }
}

/// The tensors of a file that torch wrote, in f32, without the buffers of old checkpoints.
pub(crate) fn pickled(path: &Path) -> Result<Vec<(String, Tensor)>> {
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
        if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::format(
                format!("tensor {name}"),
                format!("{:?} is not a float type", tensor.dtype()),
            ));
        }
        let values = tensor
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        finite(name, &values)?;
        tensors.push((
            name.clone(),
            Tensor::from_vec(values, tensor.dims(), &Device::Cpu)?,
        ));
    }
    Ok(tensors)
}

/// Whether two tensors have the same shape and values.
pub(super) fn same(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.dims() == b.dims()
        && a.flatten_all()?.to_vec1::<f32>()? == b.flatten_all()?.to_vec1::<f32>()?)
}
