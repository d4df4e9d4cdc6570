//! Writes spooled rows as shards: Parquet files on the local disk, several at a time. The bytes do
//! not depend on the number of threads.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use togi_common::{DatasetId, Hasher};
use togi_runtime::layout;
use togi_tokens::manifest::{self, DatasetManifest, Part, Split};
use togi_tokens::prompt;
use togi_tokens::row::Settings;
use togi_tokens::shard::{Metadata, Writer};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::pipeline::Prepared;
use crate::spool::Spool;

/// How shards are written.
pub struct Form<'a> {
    /// Digest of the tokenizer's file.
    pub tokenizer_digest: &'a str,
    /// How records became rows.
    pub settings: &'a Settings,
    /// Threads that write, at least 1.
    pub workers: usize,
    /// An empty folder for the files.
    pub folder: &'a Path,
    /// Ends the writing early.
    pub stop: &'a CancellationToken,
}

/// Writes a data set's shards into a folder, under their names in the manifest, and returns the
/// manifest.
///
/// # Errors
/// When a file cannot be written; [`Error::Stopped`] after a stop.
pub fn write(form: &Form<'_>, prepared: &Prepared) -> Result<DatasetManifest> {
    let spools = [
        (Split::Train, &prepared.train),
        (Split::Validation, &prepared.validation),
    ];
    let jobs: Vec<(Split, &Spool, usize)> = spools
        .into_iter()
        .flat_map(|(split, spool)| (0..spool.shards()).map(move |shard| (split, spool, shard)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut parts = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(&(split, spool, shard)) = jobs.get(number) else {
                return Ok::<_, Error>(parts);
            };
            parts.push((
                number,
                write_one(form, prepared.dataset, number, split, spool, shard)?,
            ));
        }
    };
    let mut parts = thread::scope(|scope| {
        let threads: Vec<_> = (0..form.workers.clamp(1, jobs.len().max(1)))
            .map(|_| scope.spawn(work))
            .collect();
        let mut parts = Vec::new();
        for thread in threads {
            let written = thread
                .join()
                .map_err(|_| Error::Panicked { thread: "writing" })?;
            parts.extend(written?);
        }
        Ok::<_, Error>(parts)
    })?;
    parts.sort_by_key(|&(number, _)| number);
    Ok(DatasetManifest {
        schema_version: manifest::SCHEMA_VERSION,
        dataset: prepared.dataset,
        tokenizer_digest: form.tokenizer_digest.to_owned(),
        template_digest: prompt::template_digest().to_owned(),
        settings: form.settings.clone(),
        records_read: prepared.read,
        accepted: prepared.accepted,
        rejected: prepared.rejected,
        rejects: manifest::Rejects {
            path: "rejects.jsonl".to_owned(),
            sha256: prepared.rejects.sha256.clone(),
        },
        parts: parts.into_iter().map(|(_, part)| part).collect(),
    })
}

/// Returns the path of a part on the local disk.
pub fn local(folder: &Path, part: &Part) -> PathBuf {
    folder.join(&part.path)
}

fn write_one(
    form: &Form<'_>,
    dataset: DatasetId,
    number: usize,
    split: Split,
    spool: &Spool,
    shard: usize,
) -> Result<Part> {
    let path = layout::part_name(number);
    let file = File::create(form.folder.join(&path)).map_err(Error::Scratch)?;
    let sink = Hashing {
        file: BufWriter::new(file),
        hasher: Hasher::new(),
        bytes: 0,
    };
    let metadata = Metadata {
        tokenizer_digest: form.tokenizer_digest.to_owned(),
        template_digest: prompt::template_digest().to_owned(),
        max_length: form.settings.max_length,
        learn: form.settings.learn,
        split: Some(split),
    };
    let mut writer = Writer::new(sink, &metadata)?;
    for row in spool.shard(shard) {
        if form.stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        writer.push(row?)?;
    }
    let (mut sink, summary) = writer.finish(dataset)?;
    sink.flush().map_err(Error::Scratch)?;
    Ok(Part {
        path,
        split,
        rows: summary.rows,
        tokens: summary.tokens,
        size_bytes: sink.bytes,
        sha256: sink.hasher.finish().to_string(),
    })
}

/// A file whose bytes are hashed while they are written.
struct Hashing {
    file: BufWriter<File>,
    hasher: Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
