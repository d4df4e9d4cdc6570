//! What the commands that need no services share: bases, tokenizers and adapters from the local disk, and a thread to work on.

pub mod lines;
pub mod records;

use std::fs;
use std::path::Path;

use togi_model::{Base, Card, Config, Lora, Precision, Processor, adapter, base};
use togi_tokens::Tokenizer;
use tokio::task::spawn_blocking;

use crate::error::{Error, Result};

/// Does work that takes long on a thread of its own, so that Ctrl-C is heard meanwhile.
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
/// None has the name; the text says which there are.
pub fn precision(name: &str) -> std::result::Result<Precision, String> {
    Precision::from_name(name).map_err(|error| error.to_string())
}

/// Opens the card, if the device is one.
///
/// # Errors
/// What is missing, or not fit.
pub async fn card(device: Processor) -> Result<Option<Card>> {
    on_thread(move || device.open().map_err(refused)).await
}

/// Reads a base's folder for a device.
///
/// # Errors
/// [`Error::File`] for a folder that is not there or cannot be read, [`Error::Unfit`] for one that holds no usable base; so do
/// the others here.
pub fn base(folder: &Path, device: Processor, precision: Precision) -> Result<Base> {
    present(folder)?;
    let base = device.read(folder, precision);
    base.map_err(|error| unfit("base", folder, error))
}

/// Reads a SentencePiece model's file.
pub fn tokenizer(file: &Path) -> Result<Tokenizer> {
    let bytes = fs::read(file).map_err(|error| Error::file(file, error))?;
    Tokenizer::from_bytes(&bytes).map_err(|error| Error::unfit("tokenizer", file, error))
}

/// Reads the tokenizer in a base's folder, and nothing else of it.
pub fn tokenizer_of(folder: &Path) -> Result<Tokenizer> {
    present(folder)?;
    match base::tokenizer_file(folder) {
        Some(file) => tokenizer(&file),
        None => {
            let reason = "it has no spiece.model and no tokenizer.model";
            Err(Error::unfit("base", folder, reason))
        }
    }
}

/// Reads a PEFT folder for a base.
pub fn adapter(folder: &Path, config: &Config) -> Result<Lora> {
    present(folder)?;
    adapter::from_folder(folder, config).map_err(|error| unfit("adapter", folder, error))
}

/// Makes a folder for results unless it is there.
pub fn folder_for(results: &Path) -> Result<()> {
    fs::create_dir_all(results).map_err(|error| Error::file(results, error))
}

/// Makes a folder for a base. One that holds something already is refused: what is left of another base in it would be
/// read with the new one.
pub fn folder_for_base(results: &Path) -> Result<()> {
    folder_for(results)?;
    let mut entries = fs::read_dir(results).map_err(|error| Error::file(results, error))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Error::unfit("--out", results, "the folder is not empty")),
    }
}

/// A folder or file that is named wrongly is told apart from one that cannot be used.
pub(crate) fn present(path: &Path) -> Result<()> {
    fs::metadata(path)
        .map(drop)
        .map_err(|error| Error::file(path, error))
}

/// A device's refusal is nobody else's fault.
fn refused(error: togi_model::Error) -> Error {
    togi_runtime::Error::precondition(error.to_string()).into()
}

/// A file's own failure names the file, and a device's the device.
pub(crate) fn unfit(what: &'static str, path: &Path, error: togi_model::Error) -> Error {
    match error {
        togi_model::Error::File { path, source } => Error::File { path, source },
        error @ togi_model::Error::Device { .. } => refused(error),
        other => Error::unfit(what, path, other),
    }
}
