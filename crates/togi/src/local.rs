//! Helpers of the commands that need no services: bases, tokenizers and adapters from the local
//! disk, adapters that leave the store, and a worker thread.

pub mod lines;
pub mod named;
pub mod portable;
pub mod records;
pub mod tokenizer_files;

use std::fs;
use std::path::Path;

use togi_model::{Base, Config, DeviceName, Gpu, Lora, Precision, adapter, base};
use togi_tokens::Tokenizer;
use tokio::task::spawn_blocking;

use crate::error::{Error, Result};

/// Runs long work on its own thread, so that Ctrl-C still works.
///
/// # Errors
/// The work's.
pub async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(Error::Failed("the work ended unexpectedly".to_owned())),
    }
}

/// Reads a precision's name, for the command line.
///
/// # Errors
/// No precision has this name; the text lists the names.
pub fn precision(name: &str) -> std::result::Result<Precision, String> {
    Precision::from_name(name).map_err(|error| error.to_string())
}

/// Opens the GPU, if the device is one.
///
/// # Errors
/// The reason why the device cannot be used.
pub async fn gpu(device: DeviceName) -> Result<Option<Gpu>> {
    on_thread(move || device.open().map_err(refused)).await
}

/// Reads a base's folder for a device.
///
/// # Errors
/// [`Error::File`] if the folder is missing or unreadable, [`Error::Unfit`] if it holds no usable
/// base. The other readers of this file fail in the same way.
pub fn base(folder: &Path, device: DeviceName, precision: Precision) -> Result<Base> {
    is_folder("base", folder)?;
    let base = device.read(folder, precision);
    base.map_err(|error| unfit("base", folder, error))
}

/// Reads a SentencePiece model's file.
pub fn tokenizer(file: &Path) -> Result<Tokenizer> {
    let bytes = togi_runtime::file::read(file).map_err(|error| Error::file(file, error))?;
    Tokenizer::from_bytes(&bytes).map_err(|error| Error::unfit("tokenizer", file, error))
}

/// Reads only the tokenizer of a base's folder.
pub fn tokenizer_of(folder: &Path) -> Result<Tokenizer> {
    is_folder("base", folder)?;
    match base::tokenizer_file(folder) {
        Some(file) => {
            let tokenizer = tokenizer(&file)?;
            let checked = tokenizer.check_folder(folder);
            checked.map_err(|error| Error::unfit("base", folder, error))?;
            Ok(tokenizer)
        }
        None => {
            let reason = "it has no spiece.model and no tokenizer.model";
            Err(Error::unfit("base", folder, reason))
        }
    }
}

/// Reads a PEFT folder for a base.
pub fn adapter(folder: &Path, config: &Config) -> Result<Lora> {
    is_folder("adapter", folder)?;
    adapter::from_folder(folder, config).map_err(|error| unfit("adapter", folder, error))
}

/// Creates a folder for results, unless it exists.
pub fn folder_for(results: &Path) -> Result<()> {
    fs::create_dir_all(results).map_err(|error| Error::file(results, error))
}

/// Creates a folder for a base. A folder that is not empty is refused: files of another base would
/// be read together with the new one.
pub fn folder_for_base(results: &Path) -> Result<()> {
    folder_for(results)?;
    let mut entries = fs::read_dir(results).map_err(|error| Error::file(results, error))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Error::unfit("--out", results, "the folder is not empty")),
    }
}

/// Fails if the path does not exist, so that a wrong path is distinguished from an unusable file.
pub(crate) fn present(path: &Path) -> Result<()> {
    fs::metadata(path)
        .map(drop)
        .map_err(|error| Error::file(path, error))
}

/// Fails if the path does not exist, or is no folder.
fn is_folder(what: &'static str, path: &Path) -> Result<()> {
    let metadata = fs::metadata(path).map_err(|error| Error::file(path, error))?;
    if metadata.is_dir() {
        return Ok(());
    }
    Err(Error::unfit(
        what,
        path,
        "it is no folder; name the folder that has its files",
    ))
}

/// Reports an unusable device as a failed precondition.
fn refused(error: togi_model::Error) -> Error {
    togi_runtime::Error::precondition(error.to_string()).into()
}

/// Names the file in a file's error, the device in a device's error, and the folder otherwise.
pub(crate) fn unfit(what: &'static str, path: &Path, error: togi_model::Error) -> Error {
    match error {
        togi_model::Error::File { path, source } => Error::File { path, source },
        error @ togi_model::Error::Device { .. } => refused(error),
        other => Error::unfit(what, path, other),
    }
}
