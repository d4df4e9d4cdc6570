//! Where records are: finds a source's files in an object store or on a hub, and opens them one
//! after the other. A stored object is read in ranges, each of which holds its version: one that is
//! replaced meanwhile fails, rather than mixes.

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
use togi_runtime::store::hub::{Hub, HubRef};
use togi_runtime::store::{connect, connect_object};
use togi_runtime::{Class, Store, layout};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::input::Input;
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::request::RecordsFrom;
use crate::{Error, Result, pipeline};

/// Bytes of an object that one request asks for.
const RANGE_BYTES: u64 = 4 << 20;
/// File names that hold records, where a source is a folder.
const ENDINGS: [&str; 3] = [".json", ".jsonl", ".parquet"];
const PACKED_ENDINGS: [&str; 3] = [".gz", ".zst", ".zstd"];

/// The files of a source, found but not opened.
#[derive(Clone)]
pub struct Located {
    files: Vec<Place>,
    /// Bytes in all files, as they are stored.
    pub bytes: u64,
}

#[derive(Clone)]
enum Place {
    Object {
        store: Arc<dyn ObjectStore>,
        meta: ObjectMeta,
    },
    File {
        path: PathBuf,
        name: String,
    },
}

/// Where to look.
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
    /// Finds a source's files.
    ///
    /// # Errors
    /// `NotFound` with the field where the source, its object or its data set does not exist.
    pub async fn find(&self, from: &RecordsFrom) -> Result<Located> {
        match from {
            RecordsFrom::Upload(id) => {
                let meta = self.store.head(&layout::upload(id)).await;
                let meta = meta.map_err(|e| missing(e, "records.upload", "no such upload"))?;
                let store = self.store.inner();
                Ok(Located {
                    bytes: meta.size,
                    files: vec![Place::Object { store, meta }],
                })
            }
            RecordsFrom::Configured(name) => self.configured(name).await,
            RecordsFrom::Hub(reference) => self.hub(reference).await,
        }
    }

    /// Checks that a source can be found, without fetching anything of it.
    ///
    /// # Errors
    /// As [`Finder::find`], but a hub is not asked: it may be slow, and its answer is the job's.
    pub async fn check(&self, from: &RecordsFrom) -> Result<()> {
        match from {
            RecordsFrom::Hub(_) => Ok(()),
            RecordsFrom::Upload(_) => self.find(from).await.map(drop),
            RecordsFrom::Configured(name) => self.source(name).map(drop),
        }
    }

    fn source(&self, name: &str) -> Result<&StoreConfig> {
        self.sources.get(name).ok_or_else(|| {
            let text = format!("no source {name:?} is configured");
            togi_runtime::Error::not_found(text).with_field("records.configured")
        })
    }

    async fn configured(&self, name: &str) -> Result<Located> {
        const FIELD: &str = "records.configured";
        let source = self.source(name)?;
        // The configuration's fault, not the request's; but it is this field that stands for it.
        let wrong = |e: togi_runtime::Error| {
            let text = format!("source {name:?} is configured wrongly: {}", e.message());
            togi_runtime::Error::precondition(text)
                .with_field(FIELD)
                .with_source(e)
        };
        let absent = |error| missing(error, FIELD, "the source's object does not exist");
        let options = source.all_options().map_err(wrong)?;
        let (store, metas) = if source.url.ends_with('/') {
            let store = connect(&source.url, &options).map_err(wrong)?;
            let mut metas: Vec<ObjectMeta> = store
                .list(None)
                .try_filter(|meta| std::future::ready(holds_records(meta.location.as_ref())))
                .try_collect()
                .await
                .map_err(|e| absent(e.into()))?;
            metas.sort_by(|a, b| a.location.cmp(&b.location));
            (store, metas)
        } else {
            let (store, key) = connect_object(&source.url, &options).map_err(wrong)?;
            let meta = store.head(&key).await.map_err(|e| absent(e.into()))?;
            (store, vec![meta])
        };
        self.bounded(metas.len(), FIELD)?;
        let bytes = metas.iter().map(|meta| meta.size).sum();
        let files = metas.into_iter().map(|meta| Place::Object {
            store: store.clone(),
            meta,
        });
        Ok(Located {
            files: files.collect(),
            bytes,
        })
    }

    async fn hub(&self, reference: &HubRef) -> Result<Located> {
        const FIELD: &str = "records.hub";
        let hub = Hub::from_environment()?;
        let found = hub.snapshot(reference, holds_records).await;
        let found = found.map_err(|e| e.with_field(FIELD))?.files;
        self.bounded(found.len(), FIELD)?;
        let (mut files, mut bytes) = (Vec::new(), 0);
        for (name, path) in found {
            bytes += tokio::fs::metadata(&path).await?.len();
            files.push(Place::File { path, name });
        }
        Ok(Located { files, bytes })
    }

    fn bounded(&self, files: usize, field: &str) -> Result<()> {
        if files == 0 {
            let text = "the source has no .json, .jsonl or .parquet file";
            return Err(togi_runtime::Error::not_found(text).with_field(field));
        }
        if files > self.max_files {
            let text = format!("the source has {files} files, more than {}", self.max_files);
            return Err(togi_runtime::Error::invalid(field, text));
        }
        Ok(())
    }
}

fn missing(error: togi_runtime::Error, field: &str, text: &str) -> togi_runtime::Error {
    if error.class() == Class::NotFound {
        return togi_runtime::Error::not_found(text)
            .with_field(field)
            .with_source(error);
    }
    error
}

/// Whether a file of a folder or a hub's data set holds records, by its name alone.
fn holds_records(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let packed = PACKED_ENDINGS
        .iter()
        .find_map(|ending| name.strip_suffix(ending));
    let plain = packed.unwrap_or(&name);
    let file = plain.rsplit('/').next().unwrap_or_default();
    // What libraries keep beside the records.
    let about = [
        "dataset_infos.json",
        "dataset_dict.json",
        "state.json",
        "dataset_info.json",
    ];
    ENDINGS.iter().any(|ending| plain.ends_with(ending))
        && !file.starts_with('.')
        && !about.contains(&file)
}

/// Opens located files in their order, on a thread that may wait.
pub struct Opener {
    /// The files.
    pub located: Located,
    /// The runtime that the object store works on.
    pub handle: Handle,
    /// Ends a read that waits.
    pub stop: CancellationToken,
    /// Counts the bytes.
    pub progress: Arc<Progress>,
    /// Counts the bytes, too.
    pub metrics: Metrics,
}

impl pipeline::Source for Opener {
    fn files(&self) -> usize {
        self.located.files.len()
    }

    fn open(&mut self, file: usize) -> Result<(String, Input), Error> {
        let counter = Counter {
            progress: self.progress.clone(),
            metrics: self.metrics.clone(),
        };
        match &self.located.files[file] {
            Place::Object { store, meta } => {
                let name = meta.location.filename().unwrap_or_default().to_owned();
                let reader = ObjectReader {
                    store: store.clone(),
                    meta: meta.clone(),
                    at: 0,
                    buffer: Bytes::new(),
                    handle: self.handle.clone(),
                    stop: self.stop.clone(),
                    counter,
                };
                Ok((
                    name,
                    Input {
                        reader: Box::new(reader),
                        file: None,
                    },
                ))
            }
            Place::File { path, name } => {
                let opened = File::open(path).map_err(Error::Scratch)?;
                let reader = opened.try_clone().map_err(Error::Scratch)?;
                let reader = Box::new(FileReader {
                    file: reader,
                    counter,
                });
                Ok((
                    name.clone(),
                    Input {
                        reader,
                        file: Some(opened),
                    },
                ))
            }
        }
    }
}

struct Counter {
    progress: Arc<Progress>,
    metrics: Metrics,
}

impl Counter {
    fn add(&self, bytes: u64) {
        self.progress.add_bytes(bytes);
        self.metrics.source_bytes(bytes);
    }
}

struct FileReader {
    file: File,
    counter: Counter,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.counter.add(read as u64);
        Ok(read)
    }
}

struct ObjectReader {
    store: Arc<dyn ObjectStore>,
    meta: ObjectMeta,
    at: u64,
    buffer: Bytes,
    handle: Handle,
    stop: CancellationToken,
    counter: Counter,
}

impl ObjectReader {
    fn fetch(&mut self) -> Result<(), Error> {
        let end = (self.at + RANGE_BYTES).min(self.meta.size);
        let options = GetOptions {
            range: Some(GetRange::Bounded(self.at..end)),
            if_match: self.meta.e_tag.clone(),
            ..GetOptions::default()
        };
        let (store, path): (_, &Path) = (&self.store, &self.meta.location);
        let get = async { store.get_opts(path, options).await?.bytes().await };
        let got = self.handle.block_on(self.stop.run_until_cancelled(get));
        let bytes = got.ok_or(Error::Stopped)?.map_err(|error| match error {
            // Of a class of its own: a lost race is not what this is.
            object_store::Error::Precondition { .. } => togi_runtime::Error::unavailable(
                "the source was replaced while it was read; it is read again from the start",
            ),
            error => error.into(),
        })?;
        if bytes.len() as u64 != end - self.at {
            let short = togi_runtime::Error::unavailable("the object store sent too few bytes");
            return Err(short.into());
        }
        self.counter.add(bytes.len() as u64);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_told_by_their_files_names() {
        for name in [
            "a.json",
            "data/train-00000-of-00001.parquet",
            "x.JSONL.gz",
            "y.json.zst",
        ] {
            assert!(holds_records(name), "{name}");
        }
        for name in [
            "README.md",
            ".x.json",
            "dataset_infos.json",
            "a.json.txt",
            "b.csv",
            "json",
        ] {
            assert!(!holds_records(name), "{name}");
        }
    }
}
