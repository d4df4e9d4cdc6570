//! Writes a shard. Rows are held back for one row group, and every property that determines the
//! bytes is fixed here.

use std::io::Write;
use std::sync::Arc;

use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use togi_common::DatasetId;

use super::batch::{schema, to_batch};
use super::metadata::{Metadata, ROWS_PER_GROUP, SCHEMA_VERSION};
use crate::error::Result;
use crate::row::Row;

/// The writer's name. It is part of a shard's bytes, so that it changes only with
/// [`SCHEMA_VERSION`].
const CREATED_BY: &str = "togi shard 1";

/// This level is fast and halves the size of ids.
const ZSTD_LEVEL: i32 = 3;

/// Writes one shard. The same rows with the same metadata give the same bytes.
pub struct Writer<W: Write + Send> {
    parquet: ArrowWriter<W>,
    group: Vec<Row>,
    summary: Summary,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Rows.
    pub rows: u64,
    /// Ids in the rows.
    pub tokens: u64,
}

impl<W: Write + Send> Writer<W> {
    /// Starts a shard in a sink, which need not be buffered.
    pub fn new(sink: W, metadata: &Metadata) -> Result<Self> {
        let entries = [
            ("togi.schema_version", SCHEMA_VERSION.to_string()),
            ("togi.tokenizer", metadata.tokenizer_digest.clone()),
            ("togi.template", metadata.template_digest.clone()),
            ("togi.max_length", metadata.max_length.to_string()),
            ("togi.learn", metadata.learn.name().to_owned()),
        ];
        let split = metadata
            .split
            .map(|split| ("togi.split", split.name().to_owned()));
        let entries = entries.into_iter().chain(split);
        let entries = entries.map(|(key, value)| KeyValue::new(key.to_owned(), value));
        let properties = WriterProperties::builder()
            .set_created_by(CREATED_BY.to_owned())
            .set_writer_version(WriterVersion::PARQUET_1_0)
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
            .set_dictionary_enabled(false)
            .set_column_dictionary_enabled("category".into(), true)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_offset_index_disabled(true)
            .set_data_page_size_limit(1 << 20)
            .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
            .set_key_value_metadata(Some(entries.collect()))
            .build();
        let options = ArrowWriterOptions::new()
            .with_properties(properties)
            // The Arrow schema would repeat the columns, and a reader must not trust it.
            .with_skip_arrow_metadata(true);
        let parquet = ArrowWriter::try_new_with_options(sink, Arc::clone(&schema()), options)?;
        Ok(Self {
            parquet,
            group: Vec::with_capacity(ROWS_PER_GROUP),
            summary: Summary::default(),
        })
    }

    /// Adds a row.
    pub fn push(&mut self, row: Row) -> Result<()> {
        self.summary.rows += 1;
        self.summary.tokens += row.input_ids.len() as u64;
        self.group.push(row);
        if self.group.len() == ROWS_PER_GROUP {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// The rows that were pushed so far.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Ends the shard with the id of its data set, which need not be known before.
    pub fn finish(mut self, dataset: DatasetId) -> Result<(W, Summary)> {
        self.flush()?;
        let dataset = KeyValue::new("togi.dataset".to_owned(), dataset.to_string());
        self.parquet.append_key_value_metadata(dataset);
        Ok((self.parquet.into_inner()?, self.summary))
    }

    fn flush(&mut self) -> Result<()> {
        if self.group.is_empty() {
            return Ok(());
        }
        self.parquet.write(&to_batch(&self.group)?)?;
        self.parquet.flush()?;
        self.group.clear();
        Ok(())
    }
}

impl<W: Write + Send> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}
