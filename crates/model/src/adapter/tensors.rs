//! An adapter's tensors: written deterministically; read from safetensors with a checked header, or
//! from torch's format.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::de::IgnoredAny;

use super::entries::Entries;
use super::files::TENSORS_FILE;
use crate::base::read;
use crate::error::{Error, Result};
use crate::lora::Lora;
use crate::names;

/// The longest header that is read; an adapter of a hundred layers needs a tenth of it.
const HEADER_LIMIT: u64 = 1 << 20;

/// Shapes and values by PEFT's name, or by the file's where that is not understood.
pub(super) type Found = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub(super) fn write(lora: &Lora) -> Result<Vec<u8>> {
    let mut tensors = Vec::new();
    for view in lora.views() {
        let values = &lora.values()[view.range];
        if !values.iter().all(|value| value.is_finite()) {
            return Err(Error::NotFinite(view.name));
        }
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        tensors.push((view.name, view.shape.to_vec(), bytes));
    }
    let broken = |e: safetensors::SafeTensorError| Error::format(TENSORS_FILE, e.to_string());
    let mut views = Vec::new();
    for (name, shape, bytes) in &tensors {
        views.push((
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(broken)?,
        ));
    }
    // A single entry, because the order of a larger map is not fixed.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(views, Some(metadata)).map_err(broken)
}

pub(super) fn read(bytes: &[u8]) -> Result<Found> {
    let broken = |reason: String| Error::format(TENSORS_FILE, reason);
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(broken("is too short".into()));
    };
    let len = u64::from_le_bytes(*len);
    if len > HEADER_LIMIT {
        return Err(broken(format!(
            "its header of {len} bytes is over {HEADER_LIMIT}"
        )));
    }
    let header = usize::try_from(len).ok().and_then(|len| rest.get(..len));
    let header = header.ok_or_else(|| broken("ends inside its header".into()))?;
    refuse_duplicates(header)?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| broken(e.to_string()))?;
    let mut found = Found::new();
    for (name, view) in file.iter() {
        let values = read::values(name, &view)?;
        insert(&mut found, name, view.shape().to_vec(), values)?;
    }
    Ok(found)
}

/// Reads torch's format, which PEFT wrote before safetensors.
pub(super) fn read_pickled(path: &Path) -> Result<Found> {
    let mut found = Found::new();
    for (name, _, tensor) in read::pickled(path)? {
        let values = tensor.flatten_all()?.to_vec1()?;
        insert(&mut found, &name, tensor.dims().to_vec(), values)?;
    }
    Ok(found)
}

fn insert(found: &mut Found, name: &str, shape: Vec<usize>, values: Vec<f32>) -> Result<()> {
    let name = names::of_adapter(name);
    match found.insert(name.clone(), (shape, values)) {
        Some(_) => Err(Error::Duplicate(name)),
        None => Ok(()),
    }
}

/// Refuses equal names. A JSON parser would silently keep the last of them.
fn refuse_duplicates(header: &[u8]) -> Result<()> {
    let entries: Entries<IgnoredAny> =
        serde_json::from_slice(header).map_err(|source| Error::Json {
            what: format!("{TENSORS_FILE}'s header"),
            source,
        })?;
    let mut names: Vec<_> = entries.0.into_iter().map(|(name, _)| name).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::Duplicate(pair[0].clone())),
        None => Ok(()),
    }
}
