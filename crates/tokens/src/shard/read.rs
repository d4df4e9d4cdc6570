//! Reads a shard by row groups in any order, after its footer and its pages were checked against
//! the caps.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;

use super::batch::schema;
use super::caps::{Caps, check};
use super::metadata::{Metadata, SCHEMA_VERSION};
use crate::error::{Error, Result};
use crate::row::Learn;
use crate::split::Split;

/// An open shard. `R` is its bytes (`bytes::Bytes`) or its file.
pub struct Reader<R: ChunkReader + Clone> {
    source: R,
    footer: ArrowReaderMetadata,
    metadata: Metadata,
    dataset: String,
}

impl<R: ChunkReader + Clone + 'static> Reader<R> {
    /// Opens a shard. Fails if it exceeds the caps or does not have a shard's form.
    pub fn open(source: R, caps: &Caps) -> Result<Self> {
        let footer = Arc::new(check(&source, caps)?);
        let (metadata, dataset) = key_values(&footer)?;
        // Types come from the Parquet columns, never from the Arrow schema that a file may embed.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let footer = ArrowReaderMetadata::try_new(footer, options)?;
        let (expected, found) = (schema(), footer.schema());
        let same = expected.fields() == found.fields();
        if !same {
            return Err(Error::shard("its columns are not a shard's"));
        }
        Ok(Self {
            source,
            footer,
            metadata,
            dataset,
        })
    }

    /// How the shard was made.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The digest of the data set that it belongs to.
    pub fn dataset(&self) -> &str {
        &self.dataset
    }

    /// The number of rows.
    pub fn rows(&self) -> u64 {
        let groups = self.footer.metadata().row_groups().iter();
        groups.map(|group| group.num_rows().unsigned_abs()).sum()
    }

    /// The number of rows in each row group. In a shard of [`super::Writer`] it is
    /// [`super::ROWS_PER_GROUP`] in all groups but the last.
    pub fn group_rows(&self) -> impl Iterator<Item = u64> + '_ {
        self.footer
            .metadata()
            .row_groups()
            .iter()
            .map(|group| group.num_rows().unsigned_abs())
    }

    /// Reads one row group.
    pub fn group(&self, group: usize) -> Result<RecordBatch> {
        let Some(rows) = self.group_rows().nth(group) else {
            return Err(Error::shard(format!("it has no row group {group}")));
        };
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.source.clone(),
            self.footer.clone(),
        )
        .with_row_groups(vec![group])
        .with_batch_size((rows as usize).max(1))
        .build()?;
        let batches = reader.collect::<Result<Vec<_>, _>>()?;
        let batch = concat_batches(&schema(), &batches)?;
        if batch.num_rows() as u64 != rows {
            return Err(Error::shard(format!(
                "row group {group} has not the rows that it claims"
            )));
        }
        Ok(batch)
    }

    /// Reads all row groups, one by one.
    pub fn groups(&self) -> impl Iterator<Item = Result<RecordBatch>> + '_ {
        (0..self.footer.metadata().num_row_groups()).map(|group| self.group(group))
    }
}

impl<R: ChunkReader + Clone> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("dataset", &self.dataset)
            .finish_non_exhaustive()
    }
}

fn key_values(footer: &ParquetMetaData) -> Result<(Metadata, String)> {
    let entries = footer.file_metadata().key_value_metadata();
    let value = |key: &str| {
        let entry = entries.into_iter().flatten().find(|entry| entry.key == key);
        let value = entry.and_then(|entry| entry.value.clone());
        value.ok_or_else(|| Error::shard(format!("its footer has no {key}")))
    };
    let number = |key: &str| {
        let value = value(key)?;
        value
            .parse::<u32>()
            .map_err(|_| Error::shard(format!("its {key} is {value:?}")))
    };
    let version = number("togi.schema_version")?;
    if version != SCHEMA_VERSION {
        let reason = format!("schema version {version}, this build reads {SCHEMA_VERSION}");
        return Err(Error::shard(reason));
    }
    let learn = value("togi.learn")?;
    let metadata = Metadata {
        tokenizer_digest: value("togi.tokenizer")?,
        template_digest: value("togi.template")?,
        max_length: number("togi.max_length")?,
        learn: Learn::from_name(&learn)
            .ok_or_else(|| Error::shard(format!("its togi.learn is {learn:?}")))?,
        split: match value("togi.split") {
            Err(_) => None,
            Ok(split) => Some(
                Split::from_name(&split)
                    .ok_or_else(|| Error::shard(format!("its togi.split is {split:?}")))?,
            ),
        },
    };
    Ok((metadata, value("togi.dataset")?))
}
