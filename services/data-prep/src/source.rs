//! Finds a source's files in an object store or on a hub, and opens them one after the other. An
//! object is read in ranges of one version, so that a replaced object fails instead of being mixed
//! with its successor.

mod files;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};
use togi_runtime::config::StoreConfig;
use togi_runtime::store::folder::local_folder;
use togi_runtime::store::hub::HubRef;
use togi_runtime::store::{connect, connect_object};
use togi_runtime::{Store, layout};
use togi_tokens::manifest::Split;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use self::files::{
    all_regular, holds_records, is_separated, only_tables, with_records, without_links,
};
use crate::error::{Error, Result};
use crate::hub;
use crate::input::{Input, open_file};
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::splits::Choice;

/// Bytes of one read of an object.
const RANGE_BYTES: u64 = 4 << 20;

/// Where records come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordsFrom {
    /// An upload, by its SHA-256.
    Upload(String),
    /// A source of the configuration, by its name.
    Configured(String),
    /// A hub's data set, `hf://datasets/OWNER/NAME[@REVISION]`.
    Hub(HubRef),
}

/// The files of a source, found but not opened.
#[derive(Clone)]
pub struct Located {
    files: Vec<(Location, Split)>,
    /// Bytes in all files, as they are stored.
    pub bytes: u64,
    /// A sentence about the files that are read and those that are not; empty for one file.
    pub reading: String,
}

#[derive(Clone)]
enum Location {
    Object {
        store: Arc<dyn ObjectStore>,
        meta: ObjectMeta,
    },
    File {
        path: PathBuf,
        name: String,
    },
}

/// Finds the files of sources.
#[derive(Clone)]
pub struct Finder {
    /// The store of uploads.
    pub store: Store,
    /// The configuration's sources.
    pub sources: Arc<BTreeMap<String, StoreConfig>>,
    /// Most files of one source.
    pub max_files: usize,
}

impl Finder {
    /// Finds a source's files of the chosen splits.
    ///
    /// # Errors
    /// `NotFound` with the field if the source, its object or its data set does not exist;
    /// `InvalidArgument` if a chosen split does not.
    pub async fn find(&self, from: &RecordsFrom, splits: &Choice) -> Result<Located> {
        match from {
            RecordsFrom::Upload(id) => {
                let meta = self.upload(id).await?;
                let store = self.store.inner();
                // One file, whose name is the upload's id.
                located(
                    vec![(String::new(), meta.size, Location::Object { store, meta })],
                    splits,
                )
            }
            RecordsFrom::Configured(name) => self.configured(name, splits).await,
            RecordsFrom::Hub(reference) => self.hub(reference, splits).await,
        }
    }

    /// Checks that a source exists, without fetching any of it.
    ///
    /// # Errors
    /// As [`Finder::find`]. A hub may be slow, so that only the job asks it.
    pub async fn check(&self, from: &RecordsFrom) -> Result<()> {
        match from {
            RecordsFrom::Hub(_) => Ok(()),
            RecordsFrom::Upload(id) => self.upload(id).await.map(drop),
            RecordsFrom::Configured(name) => self.source(name).map(drop),
        }
    }

    async fn upload(&self, id: &str) -> Result<ObjectMeta> {
        let meta = self.store.head(&layout::upload(id)).await;
        meta.map_err(|e| Error::missing(e, "records.upload", "no such upload"))
    }

    fn source(&self, name: &str) -> Result<&StoreConfig> {
        self.sources.get(name).ok_or_else(|| {
            let text = format!("no source {name:?} is configured");
            Error::not_found("records.configured", text)
        })
    }

    async fn configured(&self, name: &str, splits: &Choice) -> Result<Located> {
        const FIELD: &str = "records.configured";
        let source = self.source(name)?;
        // The configuration is at fault, but this field of the request names it.
        let wrong = |e: togi_runtime::Error| {
            let text = format!("source {name:?} is configured wrongly: {}", e.message());
            togi_runtime::Error::precondition(text)
                .with_field(FIELD)
                .with_source(e)
        };
        let absent = |error| Error::missing(error, FIELD, "the source's object does not exist");
        let options = source.all_options().map_err(wrong)?;
        let (store, metas) = if source.url.ends_with('/') {
            let store = connect(&source.url, &options).map_err(wrong)?;
            let mut metas: Vec<ObjectMeta> = store
                .list(None)
                .try_filter(|meta| std::future::ready(holds_records(meta.location.as_ref())))
                .try_collect()
                .await
                .map_err(|e| absent(e.into()))?;
            if let Some(folder) = local_folder(&source.url).map_err(wrong)? {
                let reduced = spawn_blocking(move || {
                    all_regular(&folder)?;
                    Ok::<_, Error>(without_links(&folder, metas))
                });
                metas = reduced
                    .await
                    .map_err(|_| Error::Panicked { thread: "listing" })??;
            }
            let tables = only_tables(metas.iter().map(|meta| meta.location.as_ref()));
            metas.retain(|meta| tables || !is_separated(meta.location.as_ref()));
            metas.sort_by(|a, b| a.location.cmp(&b.location));
            (store, metas)
        } else {
            let (store, key) = connect_object(&source.url, &options).map_err(wrong)?;
            let meta = store.head(&key).await.map_err(|e| absent(e.into()))?;
            (store, vec![meta])
        };
        self.bounded(metas.len(), FIELD)?;
        let alone = !source.url.ends_with('/');
        let files = metas.into_iter().map(|meta| {
            let name = if alone { "" } else { meta.location.as_ref() };
            let (name, store) = (name.to_owned(), store.clone());
            (name, meta.size, Location::Object { store, meta })
        });
        located(files.collect(), splits)
    }

    async fn hub(&self, reference: &HubRef, splits: &Choice) -> Result<Located> {
        let wanted = hub::Wanted {
            records: with_records,
            max_files: self.max_files,
            splits,
        };
        let fetched = hub::fetch(reference, wanted).await?;
        let mut located = Located {
            files: Vec::with_capacity(fetched.files.len()),
            bytes: 0,
            reading: fetched.sentence,
        };
        for (name, path, split) in fetched.files {
            let metadata = tokio::fs::metadata(&path).await;
            located.bytes += metadata.map_err(togi_runtime::Error::from)?.len();
            located.files.push((Location::File { path, name }, split));
        }
        Ok(located)
    }

    fn bounded(&self, files: usize, field: &str) -> Result<()> {
        if files == 0 {
            let text = "the source has no .json, .jsonl, .parquet, .csv or .tsv file (Arrow files, as \
                        save_to_disk of datasets writes them, are not read: use to_parquet or to_json)";
            return Err(Error::not_found(field, text));
        }
        if files > self.max_files {
            let text = format!("the source has {files} files, more than {}", self.max_files);
            return Err(Error::invalid(field, text));
        }
        Ok(())
    }
}

/// Keeps the files of the chosen splits, of files with their names within the source and their
/// bytes. The name of a file that is no part of a folder is empty.
fn located(files: Vec<(String, u64, Location)>, splits: &Choice) -> Result<Located> {
    let names: Vec<&str> = files.iter().map(|(name, ..)| name.as_str()).collect();
    let chosen = splits.of(&names)?;
    let mut located = Located {
        files: Vec::with_capacity(files.len()),
        bytes: 0,
        reading: chosen.sentence,
    };
    for ((_, bytes, location), side) in files.into_iter().zip(chosen.sides) {
        if let Some(split) = side {
            located.bytes += bytes;
            located.files.push((location, split));
        }
    }
    Ok(located)
}

/// The state that the readers of a source share.
#[derive(Clone)]
pub struct Reading {
    /// The runtime of the object store.
    pub handle: Handle,
    /// Ends a waiting read.
    pub stop: CancellationToken,
    /// Counts the bytes of this preparation.
    pub progress: Arc<Progress>,
    /// Counts the bytes of the process.
    pub metrics: Metrics,
}

impl Located {
    /// Opens the files one by one in their order, each with its name, on a thread that may wait.
    pub fn open(
        &self,
        reading: Reading,
    ) -> impl ExactSizeIterator<Item = Result<(String, Input)>> + Send {
        let files = self.files.iter();
        files.map(move |(location, split)| location.open(*split, &reading))
    }
}

impl Location {
    fn open(&self, split: Split, reading: &Reading) -> Result<(String, Input)> {
        let (name, reader, file): (_, Box<dyn Read + Send>, _) = match self {
            Self::Object { store, meta } => {
                let reader = ObjectReader {
                    store: store.clone(),
                    meta: meta.clone(),
                    at: 0,
                    buffer: Bytes::new(),
                    reading: reading.clone(),
                };
                let name = meta.location.filename().unwrap_or_default();
                (name.to_owned(), Box::new(reader), None)
            }
            Self::File { path, name } => {
                let opened = open_file(path)?;
                let reader = FileReader {
                    file: opened.try_clone().map_err(Error::Scratch)?,
                    reading: reading.clone(),
                };
                (name.clone(), Box::new(reader), Some(opened))
            }
        };
        Ok((
            name,
            Input {
                reader,
                file,
                split,
            },
        ))
    }
}

impl Reading {
    fn count(&self, bytes: u64) {
        self.progress.add_bytes(bytes);
        self.metrics.source_bytes(bytes);
    }
}

struct FileReader {
    file: File,
    reading: Reading,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.reading.count(read as u64);
        Ok(read)
    }
}

struct ObjectReader {
    store: Arc<dyn ObjectStore>,
    meta: ObjectMeta,
    at: u64,
    buffer: Bytes,
    reading: Reading,
}

impl ObjectReader {
    fn fetch(&mut self) -> Result<()> {
        let end = (self.at + RANGE_BYTES).min(self.meta.size);
        let options = GetOptions {
            range: Some(GetRange::Bounded(self.at..end)),
            if_match: self.meta.e_tag.clone(),
            ..GetOptions::default()
        };
        let (store, path): (_, &Path) = (&self.store, &self.meta.location);
        let get = async { store.get_opts(path, options).await?.bytes().await };
        let Reading { handle, stop, .. } = &self.reading;
        let got = handle.block_on(stop.run_until_cancelled(get));
        let bytes = got.ok_or(Error::Stopped)?.map_err(|error| match error {
            // `Precondition` alone would mean a lost race and end the job.
            object_store::Error::Precondition { .. } => togi_runtime::Error::unavailable(
                "the source was replaced while it was read; it is read again from the start",
            ),
            error => error.into(),
        })?;
        if bytes.len() as u64 != end - self.at {
            let short = togi_runtime::Error::unavailable("the object store sent too few bytes");
            return Err(short.into());
        }
        self.reading.count(bytes.len() as u64);
        self.at = end;
        self.buffer = bytes;
        Ok(())
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() && self.at < self.meta.size {
            self.fetch().map_err(io::Error::other)?;
        }
        let count = buffer.len().min(self.buffer.len());
        self.buffer.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
