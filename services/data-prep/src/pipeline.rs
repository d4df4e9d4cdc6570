//! From a source's bytes to rows on the local disk. One thread reads and cuts, several tokenize,
//! and the calling thread writes in the source's order.
//!
//! ```text
//! reader ─┬─▶ thread 0 ─┬─▶ writer
//!         ├─▶ thread 1 ─┤
//!         └─▶ …        ─┘
//! ```
//!
//! Chunk n goes to thread n mod threads, and the writer takes chunks from the threads in the same
//! rotation, so that nothing has to be sorted. A channel holds at most `IN_FLIGHT` chunks.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use serde::Deserialize;
use tempfile::NamedTempFile;
use togi_common::{DatasetId, Hasher};
use togi_tokens::digest::DatasetHasher;
use togi_tokens::manifest::Split;
use togi_tokens::row::{Encoder, Settings};
use togi_tokens::shape::Shape;
use togi_tokens::tokenizer::Tokenizer;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::input::{self, Format, Input, Shaped, open_file};
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::read_as::ReadAs;
use crate::spool::{self, Spool};
use crate::tokenize::{Fate, Tokenized, Tokenizing};

/// Chunks in one channel. Each thread has a channel before and a channel after it.
const IN_FLIGHT: usize = 2;

/// The effect of a bad record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRecord {
    /// It is left out and listed in the rejects.
    Skip,
    /// It fails the preparation.
    Fail,
}

impl OnBadRecord {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Skip, Self::Fail];

    /// The name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Fail => "fail",
        }
    }

    /// Reads its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.name() == name)
    }
}

/// How to prepare.
pub struct Plan<'a> {
    /// Turns text into ids.
    pub tokenizer: Arc<Tokenizer>,
    /// How records become rows.
    pub settings: Settings,
    /// The source's format; detected from each file's bytes if not set.
    pub format: Option<Format>,
    /// The shape of the records; detected from each file's content if not set.
    pub shape: Option<Shape>,
    /// The effect of a bad record.
    pub on_bad_record: OnBadRecord,
    /// Tokenizing threads, at least 1.
    pub workers: usize,
    /// Most bytes of one file after unpacking.
    pub max_bytes: u64,
    /// A folder for rows and rejects.
    pub scratch: &'a Path,
    /// Ends the preparation early.
    pub stop: &'a CancellationToken,
    /// The counts of this preparation.
    pub progress: &'a Progress,
    /// The counts of the process.
    pub metrics: &'a Metrics,
}

/// The content of a data set, before it is written as shards.
#[derive(Debug)]
pub struct Prepared {
    /// The data set's id.
    pub dataset: DatasetId,
    /// Rows to train on, at least one.
    pub train: Spool,
    /// Rows kept for validation.
    pub validation: Spool,
    /// One line for each rejected record.
    pub rejects: Rejects,
    /// Records read.
    pub read: u64,
    /// Records that became rows.
    pub accepted: u64,
    /// Records that were rejected.
    pub rejected: u64,
    /// How the files were read, in words; empty if no record of them has a form.
    pub read_as: String,
}

/// `rejects.jsonl` on the local disk; deleted on drop.
#[derive(Debug)]
pub struct Rejects {
    /// The file.
    pub file: NamedTempFile,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
}

struct Numbered {
    records: Shaped,
    file: Option<Arc<str>>,
    split: Split,
}

/// Reads a source's files, which are opened one by one, each with its name. The call blocks until
/// the end of the source.
///
/// # Errors
/// When the source cannot be read or its content is refused; [`Error::Stopped`] after a stop.
pub fn prepare<F>(plan: &Plan<'_>, files: F) -> Result<Prepared>
where
    F: ExactSizeIterator<Item = Result<(String, Input)>> + Send,
{
    let encoder = Encoder::new(plan.tokenizer.clone(), plan.settings.clone())?;
    thread::scope(|scope| {
        let (mut inlets, mut outlets, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..plan.workers.max(1) {
            let (inlet, chunks) = sync_channel(IN_FLIGHT);
            let (results, outlet) = sync_channel(IN_FLIGHT);
            let tokenizing = Tokenizing::new(encoder.clone());
            threads.push(scope.spawn(move || tokenize(tokenizing, &chunks, &results)));
            inlets.push(inlet);
            outlets.push(outlet);
        }
        let reader = scope.spawn(move || read(plan, files, &inlets));
        let written = write(plan, &outlets);
        // After an error here, the closed channels end the other threads.
        drop(outlets);
        let read = reader
            .join()
            .map_err(|_| Error::Panicked { thread: "reading" });
        for thread in threads {
            thread.join().map_err(|_| Error::Panicked {
                thread: "tokenizing",
            })?;
        }
        // An error of the writer is about an earlier record than an error of the reader.
        let gathered = written?;
        gathered.finish(plan, read??)
    })
}

/// Reads the files into the channels. Returns how they were read.
fn read(
    plan: &Plan<'_>,
    files: impl ExactSizeIterator<Item = Result<(String, Input)>>,
    inlets: &[SyncSender<Numbered>],
) -> Result<ReadAs> {
    let options = input::Options {
        format: plan.format,
        shape: plan.shape.as_ref(),
        max_bytes: plan.max_bytes,
        scratch: plan.scratch,
    };
    let mut rotation = inlets.iter().cycle();
    let mut read_as = ReadAs::default();
    let several = files.len() > 1;
    for file in files {
        let (name, input) = file?;
        let file: Option<Arc<str>> = several.then(|| name.into());
        let split = input.split;
        let mut records = input::open(input, &options)?;
        while let Some(chunk) = records.next_chunk()? {
            if plan.stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            let numbered = Numbered {
                records: chunk,
                file: file.clone(),
                split,
            };
            let sent = rotation
                .next()
                .is_some_and(|inlet| inlet.send(numbered).is_ok());
            if !sent {
                // The other end was closed after its own error, which is returned.
                return Ok(read_as);
            }
        }
        read_as.add(&records);
    }
    plan.progress.set_read_as(&read_as.sentence());
    Ok(read_as)
}

fn tokenize(
    mut tokenizing: Tokenizing,
    chunks: &Receiver<Numbered>,
    results: &SyncSender<Tokenized>,
) {
    for numbered in chunks {
        let Numbered {
            records,
            file,
            split,
        } = numbered;
        let tokenized = tokenizing.chunk(&records, file.as_deref(), split);
        if results.send(tokenized).is_err() {
            return;
        }
    }
}

fn write(plan: &Plan<'_>, outlets: &[Receiver<Tokenized>]) -> Result<Gathered> {
    let mut gathered = Gathered::new(plan)?;
    let mut rotation = outlets.iter().cycle();
    while let Some(Ok(tokenized)) = rotation.next().map(Receiver::recv) {
        gathered.add(plan, tokenized)?;
    }
    Ok(gathered)
}

/// The output of the writer so far.
struct Gathered {
    hasher: DatasetHasher,
    train: spool::Writer,
    validation: spool::Writer,
    rejects: BufWriter<NamedTempFile>,
    rejects_hasher: Hasher,
    accepted: u64,
    rejected: u64,
    first_rejected: Option<(u64, String)>,
}

impl Gathered {
    fn new(plan: &Plan<'_>) -> Result<Self> {
        let rejects = NamedTempFile::new_in(plan.scratch).map_err(Error::Scratch)?;
        Ok(Self {
            hasher: DatasetHasher::new(&plan.tokenizer, &plan.settings),
            train: spool::Writer::create(plan.scratch, plan.settings.rows_per_shard)?,
            validation: spool::Writer::create(plan.scratch, plan.settings.rows_per_shard)?,
            rejects: BufWriter::new(rejects),
            rejects_hasher: Hasher::new(),
            accepted: 0,
            rejected: 0,
            first_rejected: None,
        })
    }

    fn add(&mut self, plan: &Plan<'_>, tokenized: Tokenized) -> Result<()> {
        let (before_accepted, before_rejected) = (self.accepted, self.rejected);
        for fate in tokenized.fates {
            match fate {
                Fate::Accepted { digest, split } => {
                    match split {
                        Split::Train => self.hasher.accept(digest),
                        Split::Validation => self.hasher.hold_out(digest),
                    }
                    self.accepted += 1;
                }
                Fate::Rejected { number, reason, .. }
                    if plan.on_bad_record == OnBadRecord::Fail =>
                {
                    return Err(Error::BadRecord { number, reason });
                }
                Fate::Refused { place, reason } => return Err(Error::Refused { place, reason }),
                Fate::Rejected {
                    number,
                    reason,
                    mut line,
                } => {
                    self.hasher.reject(&line);
                    line.push(b'\n');
                    self.rejects_hasher.update(&line);
                    self.rejects.write_all(&line).map_err(Error::Scratch)?;
                    self.rejected += 1;
                    self.first_rejected.get_or_insert((number, reason));
                }
            }
        }
        let accepted = self.accepted - before_accepted;
        let rejected = self.rejected - before_rejected;
        plan.progress.add_records(accepted + rejected);
        let tokens = tokenized.train.tokens + tokenized.validation.tokens;
        plan.metrics.records(accepted, rejected, tokens);
        self.train.append(&tokenized.train)?;
        self.validation.append(&tokenized.validation)
    }

    fn finish(self, plan: &Plan<'_>, read_as: ReadAs) -> Result<Prepared> {
        let read = self.accepted + self.rejected;
        if self.accepted == 0 {
            return Err(match self.first_rejected {
                None => Error::Empty,
                Some((number, reason)) => Error::AllRejected {
                    read,
                    number,
                    reason,
                    hint: read_as.remedy(),
                },
            });
        }
        let train = self.train.finish()?;
        if train.rows == 0 {
            return Err(Error::NothingToTrainOn {
                share: plan.settings.validation_share,
            });
        }
        let file = self
            .rejects
            .into_inner()
            .map_err(|e| Error::Scratch(e.into_error()))?;
        let sha256 = self.rejects_hasher.finish().to_string();
        Ok(Prepared {
            dataset: self.hasher.finish(),
            train,
            validation: self.validation.finish()?,
            rejects: Rejects { file, sha256 },
            read,
            accepted: self.accepted,
            rejected: self.rejected,
            read_as: read_as.words(),
        })
    }
}

/// Opens local files one by one, each with its name, for [`prepare`].
pub fn local_files(
    paths: Vec<PathBuf>,
) -> impl ExactSizeIterator<Item = Result<(String, Input)>> + Send {
    paths.into_iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let opened = open_file(&path)?;
        let input = Input {
            reader: Box::new(opened.try_clone().map_err(Error::Scratch)?),
            file: Some(opened),
            split: Split::Train,
        };
        Ok((name.into_owned(), input))
    })
}
