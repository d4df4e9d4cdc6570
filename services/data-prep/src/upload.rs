//! Takes uploads: a client's file is hashed while it is written to the local disk, and then stored
//! under its hash.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tempfile::NamedTempFile;
use togi_common::Hasher;
use togi_runtime::life::deadline::{bounded, bounded_by_caller};
use togi_runtime::{Class, Store, layout};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::error::{Error, Result};

/// Most bytes of one message.
const MAX_CHUNK_BYTES: usize = 1 << 20;
/// A silence of the client after which its upload ends, because it holds a place.
const SILENCE: Duration = Duration::from_secs(60);
/// Messages that may wait for the disk.
const IN_FLIGHT: usize = 4;

/// A stored upload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Uploaded {
    pub(crate) id: String,
    pub(crate) bytes: u64,
}

/// Takes one file of at most `max_bytes` and stores it, unless the store has it already.
pub(crate) async fn take(
    store: &Store,
    chunks: impl Stream<Item = Result<Bytes>>,
    scratch: PathBuf,
    max_bytes: u64,
) -> Result<Uploaded> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let writing = spawn_blocking(move || write(receiver, scratch));
    let sent = send(chunks, sender, max_bytes).await;
    let (file, hash) = writing
        .await
        .map_err(|_| Error::Panicked { thread: "upload" })??;
    // A client's error comes here: the writer only saw an end of the chunks.
    let bytes = sent?;
    let key = layout::upload(&hash);
    let outcome = "the upload may have been stored; the same one again is safe";
    if !bounded(outcome, store.exists(&key)).await? {
        bounded_by_caller(outcome, store.put_file(&key, file.path())).await?;
    }
    Ok(Uploaded { id: hash, bytes })
}

fn silent(_: Elapsed) -> Error {
    let seconds = SILENCE.as_secs();
    let message = format!("nothing has come for {seconds} s, and nothing was stored; upload again");
    togi_runtime::Error::new(Class::DeadlineExceeded, message).into()
}

async fn send(
    chunks: impl Stream<Item = Result<Bytes>>,
    sender: mpsc::Sender<Bytes>,
    max_bytes: u64,
) -> Result<u64> {
    let mut chunks = std::pin::pin!(chunks);
    let mut total = 0;
    while let Some(chunk) = timeout(SILENCE, chunks.next()).await.map_err(silent)? {
        let chunk = chunk?;
        if chunk.len() > MAX_CHUNK_BYTES {
            let text = format!("chunk must have at most {MAX_CHUNK_BYTES} bytes");
            return Err(Error::invalid("chunk", text));
        }
        total += chunk.len() as u64;
        if total > max_bytes {
            let text = format!("a file may have at most {max_bytes} bytes");
            let error = togi_runtime::Error::new(Class::ResourceExhausted, text);
            return Err(error.with_field("chunk").into());
        }
        if sender.send(chunk).await.is_err() {
            // The disk failed, and the writer has the error.
            return Ok(total);
        }
    }
    if total == 0 {
        return Err(Error::invalid("chunk", "the file is empty"));
    }
    Ok(total)
}

fn write(mut chunks: mpsc::Receiver<Bytes>, scratch: PathBuf) -> Result<(NamedTempFile, String)> {
    std::fs::create_dir_all(&scratch).map_err(Error::Scratch)?;
    let mut file = NamedTempFile::new_in(scratch).map_err(Error::Scratch)?;
    let mut hasher = Hasher::new();
    while let Some(chunk) = chunks.blocking_recv() {
        hasher.update(&chunk);
        file.write_all(&chunk).map_err(Error::Scratch)?;
    }
    Ok((file, hasher.finish().to_string()))
}
