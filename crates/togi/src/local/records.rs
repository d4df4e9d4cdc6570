//! Reads a local file of records as rows to train on, by data-prep's pipeline without its store and
//! queue.

use std::path::Path;
use std::sync::Arc;

use togi_data_prep::metrics::Metrics;
use togi_data_prep::pipeline;
use togi_data_prep::pipeline::{OnBadRecord, Plan, Prepared, local_files};
use togi_data_prep::progress::Progress;
use togi_runtime::{DatasetId, telemetry};
use togi_tokens::{Columns, Row, Settings, Tokenizer};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

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
}

/// Reads a file of records: a JSON array, JSON Lines or Parquet, gzip and zstd too.
///
/// # Errors
/// [`Error::Usage`] for a setting out of range, [`Error::File`] for a missing file, data-prep's
/// error for an unusable one.
pub fn read(file: &Path, tokenizer: &Arc<Tokenizer>, settings: Settings) -> Result<Records> {
    settings.validate().map_err(|error| match error {
        togi_tokens::Error::Setting { field, reason } => {
            Error::Usage(format!("--{}: {reason}", field.replace('_', "-")))
        }
        other => Error::Usage(other.to_string()),
    })?;
    if !file.is_file() {
        let missing = std::fs::metadata(file).err();
        let error = missing.unwrap_or_else(|| std::io::ErrorKind::InvalidInput.into());
        return Err(Error::file(file, error));
    }
    let scratch = tempfile::tempdir()?;
    let plan = Plan {
        tokenizer: tokenizer.clone(),
        settings,
        columns: Columns::default(),
        format: None,
        on_bad_record: OnBadRecord::Skip,
        workers: std::thread::available_parallelism().map_or(1, Into::into),
        max_bytes: MAX_BYTES,
        scratch: scratch.path(),
        stop: &CancellationToken::new(),
        progress: &Progress::default(),
        metrics: &Metrics::new(&telemetry::meter()),
    };
    let files = local_files(vec![file.to_owned()]);
    let prepared = pipeline::prepare(&plan, files).map_err(togi_runtime::Error::from)?;
    collect(prepared)
}

fn collect(prepared: Prepared) -> Result<Records> {
    let rows = prepared.train.read().collect::<std::result::Result<_, _>>();
    let rejects = prepared.rejects.file.path();
    Ok(Records {
        rejects: std::fs::read(rejects).map_err(|error| Error::file(rejects, error))?,
        dataset: prepared.dataset,
        rows: rows.map_err(togi_runtime::Error::from)?,
        rejected: prepared.rejected,
    })
}
