//! Writes base folders from any values: random ones for tests and benchmarks, merged ones for
//! export.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, View};

use super::random;
use crate::config::Config;
use crate::error::{Error, Result};

/// Writes `config.json` and `model.safetensors` (f32) with random weights as transformers
/// initialises them: normal with deviation 0.02, biases 0, gains 1. The same seed gives the same
/// bytes.
///
/// # Errors
/// The configuration is invalid, or a file cannot be written.
pub fn write_random(dir: &Path, config: &Config, seed: u64) -> Result<()> {
    write(dir, config, |name, len| random::weights(seed, name, len))
}

/// Writes `config.json` and `model.safetensors` (f32) with the values that `values(name, count)`
/// gives for each tensor, row by row.
///
/// # Errors
/// The configuration is invalid, the count of values is wrong, or a file cannot be written.
pub fn write(dir: &Path, config: &Config, values: impl Fn(&str, usize) -> Vec<f32>) -> Result<()> {
    config.validate()?;
    let mut tensors = Vec::new();
    for (name, shape) in config.shapes() {
        let count = shape.iter().product();
        let values = values(&name, count);
        if values.len() != count {
            return Err(Error::format(
                format!("tensor {name}"),
                format!("{} values for {count}", values.len()),
            ));
        }
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        tensors.push((name, shape, bytes));
    }
    let mut views = Vec::new();
    for (name, shape, bytes) in &tensors {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(broken)?;
        views.push((name.clone(), view));
    }
    save(dir, &config.to_json(), views)
}

/// Writes `config.json` and `model.safetensors`. One tensor at a time gives its bytes.
pub(crate) fn save<V: View>(dir: &Path, config: &[u8], tensors: Vec<(String, V)>) -> Result<()> {
    let description = dir.join("config.json");
    let file_error = |e| Error::file(&description, e);
    std::fs::write(&description, config).map_err(file_error)?;
    let permissions = std::fs::metadata(&description)
        .map_err(file_error)?
        .permissions();
    let weights = dir.join("model.safetensors");
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(tensors, Some(metadata), &weights).map_err(broken)?;
    // The writer's temporary file is readable by its owner alone. Weights get the permissions of
    // their configuration.
    std::fs::set_permissions(&weights, permissions).map_err(|e| Error::file(&weights, e))
}

fn broken(e: safetensors::SafeTensorError) -> Error {
    Error::format("model.safetensors", e.to_string())
}
