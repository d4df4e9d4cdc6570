//! Rows as Arrow batches, and batches as rows.

use std::sync::{Arc, LazyLock};

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::{Array, ArrayRef, Int32Array, ListArray, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};

use crate::error::{Error, Result};
use crate::row::Row;

/// Returns the columns: `sample_id: string`, `input_ids: list<int32>`, `labels: list<int32>`,
/// `length: int32`, `category: string`. No value is null.
pub fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let list = || DataType::List(element());
        Arc::new(Schema::new(vec![
            Field::new("sample_id", DataType::Utf8, false),
            Field::new("input_ids", list(), false),
            Field::new("labels", list(), false),
            Field::new("length", DataType::Int32, false),
            Field::new("category", DataType::Utf8, false),
        ]))
    });
    Arc::clone(&SCHEMA)
}

/// A list's item, with the name that Parquet's specification demands.
fn element() -> Arc<Field> {
    Arc::new(Field::new("element", DataType::Int32, false))
}

/// Returns rows as one batch with the columns of [`schema`].
pub fn to_batch(rows: &[Row]) -> Result<RecordBatch> {
    let mut ids = ListBuilder::new(Int32Builder::new()).with_field(element());
    let mut labels = ListBuilder::new(Int32Builder::new()).with_field(element());
    let mut lengths = Vec::with_capacity(rows.len());
    for row in rows {
        if row.input_ids.len() != row.labels.len() {
            return Err(Error::shard(format!(
                "row {:?} has not one label an id",
                row.sample_id
            )));
        }
        lengths.push(length(row)?);
        for id in &row.input_ids {
            let id = i32::try_from(*id)
                .map_err(|_| Error::shard(format!("row {:?} has the id {id}", row.sample_id)))?;
            ids.values().append_value(id);
        }
        ids.append(true);
        labels.values().append_slice(&row.labels);
        labels.append(true);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(
            rows.iter().map(|row| &row.sample_id),
        )),
        Arc::new(ids.finish()),
        Arc::new(labels.finish()),
        Arc::new(Int32Array::from(lengths)),
        Arc::new(StringArray::from_iter_values(
            rows.iter().map(|row| &row.category),
        )),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

fn length(row: &Row) -> Result<i32> {
    i32::try_from(row.input_ids.len())
        .map_err(|_| Error::shard(format!("row {:?} is too long", row.sample_id)))
}

/// Returns a batch's rows. Fails if a column is missing, has another type or nulls, or contradicts
/// another column. The item of a list may have any name.
pub fn from_batch(batch: &RecordBatch) -> Result<Vec<Row>> {
    let sample_ids: &StringArray = column(batch, "sample_id")?;
    let input_ids: &ListArray = column(batch, "input_ids")?;
    let labels: &ListArray = column(batch, "labels")?;
    let lengths: &Int32Array = column(batch, "length")?;
    let categories: &StringArray = column(batch, "category")?;
    let mut rows = Vec::with_capacity(batch.num_rows());
    for at in 0..batch.num_rows() {
        let sample_id = sample_ids.value(at).to_owned();
        let ids = numbers(input_ids, at)?.into_iter().map(u32::try_from);
        let ids: Vec<u32> = ids
            .collect::<Result<_, _>>()
            .map_err(|_| Error::shard(format!("row {sample_id:?} has a negative id")))?;
        let labels = numbers(labels, at)?;
        if ids.is_empty() || ids.len() != labels.len() || lengths.value(at) as usize != ids.len() {
            return Err(Error::shard(format!(
                "row {sample_id:?} has lists that do not fit"
            )));
        }
        let category = categories.value(at).to_owned();
        rows.push(Row {
            sample_id,
            input_ids: ids,
            labels,
            category,
        });
    }
    Ok(rows)
}

/// Returns the number of ids in each row of a batch, from the column `length`.
pub fn lengths(batch: &RecordBatch) -> Result<Vec<u32>> {
    let lengths: &Int32Array = column(batch, "length")?;
    let length = |&length: &i32| {
        u32::try_from(length).map_err(|_| Error::shard(format!("a row has the length {length}")))
    };
    lengths.values().iter().map(length).collect()
}

fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A> {
    let column = batch
        .column_by_name(name)
        .ok_or_else(|| Error::shard(format!("column {name} is missing")))?;
    let typed = column.as_any().downcast_ref::<A>().ok_or_else(|| {
        Error::shard(format!(
            "column {name} is of the type {}",
            column.data_type()
        ))
    })?;
    if typed.null_count() > 0 {
        return Err(Error::shard(format!("column {name} has nulls")));
    }
    Ok(typed)
}

fn numbers(lists: &ListArray, at: usize) -> Result<Vec<i32>> {
    let list = lists.value(at);
    let list = list.as_any().downcast_ref::<Int32Array>();
    let list = list.filter(|list| list.null_count() == 0);
    let list = list.ok_or_else(|| Error::shard("a list has nulls or is not of int32"))?;
    Ok(list.values().to_vec())
}
