//! Reads a local file of records as rows to train on, by data-prep's pipeline without its store and
//! queue.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use togi_data_prep::input::{self, Format, Input, Options, WORDS, Word};
use togi_data_prep::metrics::Metrics;
use togi_data_prep::pipeline;
use togi_data_prep::pipeline::{OnBadRecord, Plan, Prepared, local_files};
use togi_data_prep::progress::Progress;
use togi_data_prep::read_as;
use togi_runtime::{DatasetId, telemetry};
use togi_tokens::record::{Fault, Record};
use togi_tokens::shape::{Asked, Shape};
use togi_tokens::{Columns, Row, Settings, Split, Tokenizer};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::upload;

/// The most bytes of a file after decompression.
const MAX_BYTES: u64 = 16 << 30;

/// Rows and where they come from.
pub struct Records {
    /// The data set's id, the same that data-prep computes for these records.
    pub dataset: DatasetId,
    /// The rows in their stored order, at least one.
    pub rows: Vec<Row>,
    /// The number of rejected records.
    pub rejected: u64,
    /// A line for each rejected record, as in a data set's `rejects.jsonl`.
    pub rejects: Vec<u8>,
    /// How the file was read, as a sentence.
    pub reading: String,
}

/// The options that say how a file of records is read; `prepare` has the same.
#[derive(Clone, Debug, Default, Args)]
pub struct Reading {
    /// json, jsonl, parquet, csv or tsv; or alpaca, dolly, messages, sharegpt or prompt-completion
    /// [default: detected from the file]
    #[arg(long, value_name = "FORMAT", hide_possible_values = true, value_parser = WORDS)]
    pub format: Option<String>,
    /// A column with another name in the file: OURS=THEIRS; repeatable
    #[arg(long, value_name = "OURS=THEIRS", value_parser = column)]
    pub column: Vec<(String, String)>,
}

impl Reading {
    /// Whether an option was given.
    pub fn is_said(&self) -> bool {
        self.format.is_some() || !self.column.is_empty()
    }

    /// Returns the file's format and the records' shape, as far as they are said.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn said(&self) -> Result<(Option<Format>, Option<Shape>)> {
        let word = self.format.as_deref().and_then(Word::from_name);
        let (format, form) = match word {
            Some(Word::File(format)) => (Some(format), None),
            Some(Word::Records(form)) => (None, Some(form)),
            None => (None, None),
        };
        let renamed = self.column.iter();
        let columns = Columns::new(renamed.map(|(ours, theirs)| (ours.as_str(), theirs.as_str())));
        let shape = columns.and_then(|columns| Asked { form, columns }.shape());
        let shape = shape.map_err(|error| Error::Usage(format!("--column: {error}")))?;
        Ok((format, shape))
    }
}

/// Reads an option's `OURS=THEIRS`.
pub(crate) fn column(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((ours, theirs)) if !ours.is_empty() && !theirs.is_empty() => {
            Ok((ours.to_owned(), theirs.to_owned()))
        }
        _ => Err("it looks like input=context".to_owned()),
    }
}

/// Reads a file of records in any form that a preparation reads.
///
/// # Errors
/// [`Error::Usage`] for a setting out of range, [`Error::File`] for a missing file, data-prep's
/// error for an unusable one.
pub fn read(
    file: &Path,
    reading: &Reading,
    tokenizer: &Arc<Tokenizer>,
    settings: Settings,
) -> Result<Records> {
    let (format, shape) = reading.said()?;
    settings.validate().map_err(|error| match error {
        togi_tokens::Error::Setting { field, reason } => {
            Error::Usage(format!("--{}: {reason}", field.replace('_', "-")))
        }
        other => Error::Usage(other.to_string()),
    })?;
    upload::check(file)?;
    let progress = Progress::default();
    let scratch = tempfile::tempdir()?;
    let plan = Plan {
        tokenizer: tokenizer.clone(),
        settings,
        format,
        shape,
        on_bad_record: OnBadRecord::Skip,
        workers: std::thread::available_parallelism().map_or(1, Into::into),
        max_bytes: MAX_BYTES,
        scratch: scratch.path(),
        stop: &CancellationToken::new(),
        progress: &progress,
        metrics: &Metrics::new(&telemetry::meter()),
    };
    let files = local_files(vec![file.to_owned()]);
    let prepared = pipeline::prepare(&plan, files).map_err(togi_runtime::Error::from)?;
    collect(prepared, progress.snapshot().reading)
}

/// Reads a file of records, or standard input for `-`, and passes each record on. Returns how the
/// file was read, as a sentence.
///
/// # Errors
/// As [`read`]; [`Error::Configuration`] with the place of a record that cannot be used.
pub fn each(
    path: &Path,
    reading: &Reading,
    pass: &mut impl FnMut(&Record) -> Result<()>,
) -> Result<String> {
    let (format, shape) = reading.said()?;
    let file = match path.to_str() {
        Some("-") => None,
        _ => Some(File::open(path).map_err(|error| Error::file(path, error))?),
    };
    let reader: Box<dyn Read + Send> = match &file {
        Some(file) => Box::new(file.try_clone().map_err(|error| Error::file(path, error))?),
        None => Box::new(std::io::stdin()),
    };
    let scratch = tempfile::tempdir()?;
    let options = Options {
        format,
        shape: shape.as_ref(),
        max_bytes: MAX_BYTES,
        scratch: scratch.path(),
    };
    // A Parquet table is read in place, which a pipe does not allow.
    let is_file = file
        .as_ref()
        .is_some_and(|file| file.metadata().is_ok_and(|it| it.is_file()));
    let input = Input {
        reader,
        file: file.filter(|_| is_file),
        split: Split::Train,
    };
    let unreadable = |error: togi_data_prep::Error| togi_runtime::Error::from(error);
    let mut records = input::open(input, &options).map_err(unreadable)?;
    while let Some(shaped) = records.next_chunk().map_err(unreadable)? {
        for item in shaped.chunk.items() {
            let record = item.read(&shaped.shape).map_err(|fault| {
                let reason = match fault {
                    Fault::Record(reject) if reject.field.is_empty() => reject.reason,
                    Fault::Record(reject) => format!("{}: {}", reject.field, reject.reason),
                    Fault::File(reason) => reason,
                };
                let (path, number) = (path.display(), item.number);
                Error::Configuration(format!("{path}:{number}: {reason}"))
            })?;
            pass(&record)?;
        }
    }
    Ok(read_as::sentence(&records))
}

fn collect(prepared: Prepared, reading: String) -> Result<Records> {
    let rows = prepared.train.read().collect::<std::result::Result<_, _>>();
    let rejects = prepared.rejects.file.path();
    Ok(Records {
        rejects: std::fs::read(rejects).map_err(|error| Error::file(rejects, error))?,
        dataset: prepared.dataset,
        rows: rows.map_err(togi_runtime::Error::from)?,
        rejected: prepared.rejected,
        reading,
    })
}
