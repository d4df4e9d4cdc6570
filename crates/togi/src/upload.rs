//! Uploads local files to the store through data-prep, which returns the SHA-256 by which requests
//! name them.

use std::path::Path;

use bytes::Bytes;
use futures::Stream;
use togi_proto::dataprep::v1::UploadRequest;
use togi_proto::trainer::v1::Gate;
use togi_runtime::layout;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::client::Clients;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::progress::Unit;

/// The files that say that a folder was written by `save_to_disk` of Hugging Face datasets.
const SAVED: [&str; 3] = ["dataset_dict.json", "state.json", "dataset_info.json"];
/// Bytes in a message; the contract allows 1 MiB.
const CHUNK_BYTES: usize = 512 << 10;

/// Uploads a file, or standard input for `-`; returns its id.
///
/// # Errors
/// [`Error::File`] for an unreadable file, [`Error::Usage`] for an empty one. Nothing is stored
/// then.
pub async fn file(clients: &Clients, output: &Output, path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return stream(
            clients,
            output,
            "standard input",
            0,
            Box::new(tokio::io::stdin()),
        )
        .await;
    }
    let wrong = |error| Error::file(path, error);
    check(path)?;
    let file = File::open(path).await.map_err(wrong)?;
    let metadata = file.metadata().await.map_err(wrong)?;
    let name = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned();
    stream(clients, output, &name, metadata.len(), Box::new(file)).await
}

/// Refuses a folder, whose files are told from those of a saved data set, and an empty file.
///
/// # Errors
/// As [`file`].
pub(crate) fn check(path: &Path) -> Result<()> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::file(path, error))?;
    if metadata.is_dir() {
        let saved = SAVED.iter().any(|name| path.join(name).exists());
        let text = if saved {
            "is a folder of datasets' save_to_disk, whose Arrow files are not read; write the \
             records with to_json(FILE, force_ascii=False) or to_parquet(FILE)"
        } else {
            "is a folder; give one file with records, or make the folder a source (in togi.toml: \
             [services.data-prep.sources.NAME] url = \"file:///FOLDER/\"), start `togi up` again, \
             and prepare with --source NAME"
        };
        let error = std::io::Error::new(std::io::ErrorKind::IsADirectory, text);
        return Err(Error::file(path, error));
    }
    if metadata.is_file() && metadata.len() == 0 {
        return Err(Error::Usage(format!(
            "{}: the file is empty",
            path.display()
        )));
    }
    Ok(())
}

/// Uploads the questions whose path in `folder` the gate names, and puts the upload's id in its
/// place.
///
/// # Errors
/// As [`file`].
pub async fn questions(
    clients: &Clients,
    output: &Output,
    folder: &Path,
    gate: &mut Gate,
) -> Result<()> {
    let named = &gate.questions;
    if !named.is_empty() && layout::validate_digest("gate.questions", named).is_err() {
        gate.questions = file(clients, output, &folder.join(named)).await?;
    }
    Ok(())
}

/// Uploads bytes that are in memory; returns their id.
pub async fn bytes(clients: &Clients, content: Bytes) -> Result<String> {
    let chunks: Vec<_> = content
        .chunks(CHUNK_BYTES)
        .map(|chunk| UploadRequest {
            chunk: content.slice_ref(chunk).to_vec(),
        })
        .collect();
    let answer = clients
        .data_prep()
        .await?
        .upload(futures::stream::iter(chunks))
        .await?;
    Ok(answer.into_inner().upload)
}

async fn stream(
    clients: &Clients,
    output: &Output,
    name: &str,
    length: u64,
    source: Box<dyn AsyncRead + Send + Unpin>,
) -> Result<String> {
    let mut client = clients.data_prep().await?;
    let mut progress = output.progress(&format!("uploading {name}"));
    if length > 0 {
        progress.set_length(length, Unit::Bytes);
    }
    let (chunks, receiver) = mpsc::channel(4);
    let read = read_chunks(source, chunks, |sent| progress.set(sent, ""));
    let (read, answer) = tokio::join!(read, client.upload(messages(receiver)));
    progress.finish();
    // If the file could not be read to its end, the service's answer is about an incomplete file.
    read.map_err(|error| Error::file(name, error))?;
    Ok(answer?.into_inner().upload)
}

/// Sends a source in chunks. A read error ends the stream early; only the caller sees it.
async fn read_chunks(
    mut source: Box<dyn AsyncRead + Send + Unpin>,
    chunks: mpsc::Sender<UploadRequest>,
    mut sent: impl FnMut(u64),
) -> std::io::Result<()> {
    let mut total = 0;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        (&mut source)
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)
            .await?;
        if chunk.is_empty() {
            return Ok(());
        }
        total += chunk.len() as u64;
        if chunks.send(UploadRequest { chunk }).await.is_err() {
            return Ok(());
        }
        sent(total);
    }
}

fn messages(
    receiver: mpsc::Receiver<UploadRequest>,
) -> impl Stream<Item = UploadRequest> + Send + 'static {
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}
