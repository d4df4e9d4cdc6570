//! Reads Parquet by row groups, only the wanted columns, and checks every size before it is used.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use togi_tokens::shape::Shape;
use togi_tokens::shard::{self, Caps};

use super::chunk::{Chunk, Chunks};
use super::table::Table;
use super::tabular;
use crate::error::Error;

/// The largest sizes that a file may claim. Statistics make its headers longer than a shard's.
const CAPS: Caps = Caps {
    footer_bytes: 16 << 20,
    columns: 4096,
    row_groups: 100_000,
    group_rows: 1 << 24,
    chunk_bytes: 1 << 30,
    page_bytes: 64 << 20,
    header_bytes: 1 << 20,
};
/// Rows decoded at a time.
const BATCH_ROWS: usize = 64;

/// The rows of a file.
pub(super) struct Rows {
    reader: ParquetRecordBatchReader,
    next: u64,
}

impl Rows {
    /// Opens a file whose records have the shape that is said, or that its columns tell.
    pub(super) fn open(file: File, said: Option<&Shape>) -> Result<(Self, Shape), Error> {
        let metadata = guarded(|| {
            let footer = shard::check(&file, &CAPS).map_err(unreadable)?;
            // The embedded Arrow schema could claim any type; the Parquet schema is enough.
            let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
            ArrowReaderMetadata::try_new(Arc::new(footer), options).map_err(broken)
        })?;
        let schema = metadata.schema();
        let names = schema.fields().iter().map(|field| field.name().clone());
        let shape = tabular::shape(said, &names.collect::<Vec<_>>())?;
        let wanted = shape.wanted();
        let mut roots = Vec::new();
        for (index, field) in schema.fields().iter().enumerate() {
            if wanted.contains(&field.name().as_str()) {
                let kind = field.data_type();
                // Only a conversation is nested.
                let is_read = is_flat(kind) || (shape.form().is_chat() && is_nested(kind));
                if !is_read {
                    let kind = field.data_type().to_string();
                    return Err(Error::ColumnType {
                        column: field.name().clone(),
                        kind,
                    });
                }
                roots.push(index);
            }
        }
        unpackable(metadata.metadata())?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
        let reader = guarded(|| builder.build().map_err(broken))?;
        Ok((Self { reader, next: 1 }, shape))
    }
}

impl Chunks for Rows {
    fn next_chunk(&mut self) -> Result<Option<Chunk>, Error> {
        let reader = &mut self.reader;
        let batch = guarded(|| {
            let batch = reader.next().transpose();
            batch.map_err(|e| Error::malformed(format!("the parquet file is broken: {e}")))
        })?;
        let Some(batch) = batch else { return Ok(None) };
        let first = self.next;
        self.next += batch.num_rows() as u64;
        Ok(Some(Chunk::Table(Table { batch, first })))
    }
}

/// Runs the decoder. A panic, which a broken file may cause, becomes an error of that file.
fn guarded<T>(read: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(Error::malformed("the parquet file is broken")))
}

fn unreadable(error: togi_tokens::Error) -> Error {
    match error {
        togi_tokens::Error::Shard { reason } => {
            Error::malformed(format!("not a readable parquet file: {reason}"))
        }
        other => Error::malformed(format!("not a readable parquet file: {other}")),
    }
}

fn broken(error: ParquetError) -> Error {
    Error::malformed(format!("the parquet file is broken: {error}"))
}

/// Refuses a file that is packed as no library packs any more.
fn unpackable(metadata: &ParquetMetaData) -> Result<(), Error> {
    let groups = metadata.row_groups().iter();
    let mut columns = groups.flat_map(|group| group.columns());
    match columns.find(|column| matches!(column.compression(), Compression::LZO)) {
        None => Ok(()),
        Some(column) => Err(Error::malformed(format!(
            "the column {} is packed with LZO, which is not read; write the file with zstd, \
             snappy, gzip, brotli or lz4",
            column.column_path()
        ))),
    }
}

/// Whether a column's cells become JSON; a dictionary's and a view's are plain texts here.
fn is_flat(kind: &DataType) -> bool {
    use DataType as D;
    matches!(
        kind,
        D::Utf8 | D::LargeUtf8 | D::Binary | D::Boolean | D::Float32 | D::Float64 | D::Null
    ) || kind.is_integer()
}

/// Whether a column's cells become JSON with lists and objects in it.
fn is_nested(kind: &DataType) -> bool {
    match kind {
        DataType::List(element) => is_nested(element.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_nested(field.data_type())),
        kind => is_flat(kind),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use arrow_array::types::Int64Type;
    use arrow_array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::WriterProperties;
    use serde_json::Value;
    use togi_tokens::Columns;
    use togi_tokens::form::Form;
    use togi_tokens::shape::Asked;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn parquet(rows: usize) -> Vec<u8> {
        let output =
            StringArray::from_iter((0..rows).map(|n| (n != 3).then(|| format!("text {n}"))));
        let index = Int64Array::from_iter_values((0..rows).map(|n| n as i64));
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>(
            (0..rows).map(|n| Some(vec![Some(n as i64)])),
        );
        let batch = RecordBatch::try_from_iter([
            ("response", Arc::new(output) as ArrayRef),
            ("index", Arc::new(index)),
            ("extra", Arc::new(lists)),
        ]);
        let batch = batch.unwrap();
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(50))
            .build();
        let mut bytes = Vec::new();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    fn said(renamed: &[(&'static str, &'static str)]) -> Shape {
        let asked = Asked {
            columns: Columns::new(renamed.iter().copied()).unwrap(),
            form: Some(Form::Alpaca),
        };
        asked.shape().unwrap().unwrap()
    }

    fn rows(bytes: &[u8]) -> Result<Vec<(u64, Value)>, Error> {
        let said = said(&[
            ("instruction", "response"),
            ("output", "index"),
            ("index", "nr"),
        ]);
        let (mut rows, _) = Rows::open(file(bytes), Some(&said))?;
        let mut found = Vec::new();
        while let Some(chunk) = rows.next_chunk()? {
            let Chunk::Table(table) = chunk else {
                panic!("not a table")
            };
            assert!(table.batch.num_rows() <= BATCH_ROWS);
            found.extend(table.records());
        }
        Ok(found)
    }

    #[test]
    fn rows_come_as_objects_of_the_columns_that_matter() {
        let found = rows(&parquet(170)).unwrap();
        assert_eq!(found.len(), 170);
        assert_eq!(found[2].0, 3);
        assert_eq!(
            found[169].1,
            serde_json::json!({"response": "text 169", "index": 169})
        );
        assert_eq!(
            found[3].1,
            serde_json::json!({"response": null, "index": 3})
        );
    }

    #[test]
    fn a_missing_or_nested_column_is_named() {
        let opened = |said: &Shape| Rows::open(file(&parquet(5)), Some(said)).err();
        let missing = opened(&said(&[
            ("instruction", "a"),
            ("output", "index"),
            ("index", "nr"),
        ]));
        assert!(matches!(missing, Some(Error::NoColumn { column, .. }) if column == "a"));
        let nested = opened(&said(&[("instruction", "response"), ("output", "extra")]));
        assert!(matches!(nested, Some(Error::ColumnType { column, .. }) if column == "extra"));
    }

    #[test]
    fn a_file_that_is_cut_or_lies_about_its_sizes_is_refused() {
        let whole = parquet(170);
        for cut in [0, 3, 8, whole.len() / 2, whole.len() - 1] {
            assert!(rows(&whole[..cut]).is_err(), "cut at {cut}");
        }
        let mut footer = whole.clone();
        let at = footer.len() - 8;
        footer[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(rows(&footer).is_err());
    }

    #[test]
    fn no_flipped_byte_makes_the_reader_panic() {
        let whole = parquet(60);
        for at in (0..whole.len()).step_by(3) {
            let mut broken = whole.clone();
            broken[at] ^= 0xff;
            // Both outcomes are right; a panic is not.
            drop(rows(&broken));
        }
    }
}
