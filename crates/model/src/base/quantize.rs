//! Writes quantized base folders in bitsandbytes' form.

use std::path::Path;

use serde_json::Value;

use super::folder::Folder;
use super::{bitsandbytes, read, write};
use crate::error::{Error, Result};
use crate::precision::Precision;

/// The precision that the linear weights of a base folder are quantized to, if they are.
///
/// # Errors
/// No `config.json`, or a quantization that is not understood (fp4, another threshold, another
/// tool's).
pub fn quantized_as(dir: &Path) -> Result<Option<Precision>> {
    bitsandbytes::precision(&read::file(&dir.join("config.json"))?)
}

/// Quantizes the base folder `from` to [`Precision::Nf4`] or [`Precision::Int8`] and writes it to
/// the new folder `into`: `config.json` with a `quantization_config`, `model.safetensors`, and the
/// files of the tokenizer and of the settings of generation if `from` has them.
///
/// transformers with bitsandbytes loads the result, and [`super::Base::load_as`] gets from it
/// exactly the values that it gets from `from` in that precision. Tensors that are not quantized
/// keep their type.
///
/// # Errors
/// As [`super::Base::load_as`]; [`Error::Precision`] if `precision` is neither, or `from` is
/// quantized already; a file cannot be written.
pub fn write_quantized(from: &Path, into: &Path, precision: Precision) -> Result<()> {
    let refuse = |reason: String| {
        let precision = precision.name();
        Err(Error::Precision { precision, reason })
    };
    if !matches!(precision, Precision::Nf4 | Precision::Int8) {
        return refuse("is no quantization of bitsandbytes; nf4 and int8 are".into());
    }
    if let Some(other) = quantized_as(from)? {
        return refuse(format!(
            "the folder is quantized as {} already",
            other.name()
        ));
    }
    let Folder {
        config,
        config_json,
        tensors,
        ..
    } = Folder::open(from, precision)?;
    let mut settings = config.as_all_versions_read_it(Some(&config_json))?;
    let quantization = bitsandbytes::settings(precision);
    settings.insert("quantization_config".to_owned(), quantization);
    let mut outgoing = Vec::new();
    for (name, stored) in &tensors {
        outgoing.extend(bitsandbytes::outgoing(name, stored)?);
    }
    std::fs::create_dir_all(into).map_err(|e| Error::file(into, e))?;
    write::save(
        into,
        format!("{:#}\n", Value::Object(settings)).as_bytes(),
        outgoing,
    )?;
    let others = [read::tokenizer_file(from), read::generation_file(from)];
    let others = others.into_iter().flatten();
    for file in others.chain(read::tokenizer_settings(from)) {
        if let Some(name) = file.file_name() {
            let copy = into.join(name);
            std::fs::copy(&file, &copy).map_err(|e| Error::file(&copy, e))?;
        }
    }
    Ok(())
}
