//! Rows of a table as JSON objects.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, RecordBatch};
use arrow_schema::DataType;
use serde_json::{Map, Value};
use togi_tokens::Reject;

/// Records as rows of a table with the file's column names.
pub struct Table {
    pub(super) batch: RecordBatch,
    /// The number of the first row.
    pub(super) first: u64,
}

impl Table {
    /// Returns each row's number, from 1, and the row as a JSON object.
    pub fn records(&self) -> impl Iterator<Item = (u64, Value)> + '_ {
        (0..self.batch.num_rows()).map(|row| {
            let schema = self.batch.schema_ref();
            let cells = schema.fields().iter().zip(self.batch.columns());
            let object: Map<String, Value> = cells
                .map(|(field, column)| (field.name().clone(), cell(column, row)))
                .collect();
            (self.first + row as u64, Value::Object(object))
        })
    }
}

/// Rows of CSV or TSV, read already.
#[derive(Default)]
pub struct Separated {
    pub(super) rows: Vec<Row>,
    pub(super) bytes: usize,
}

/// A row of CSV or TSV.
pub(super) struct Row {
    /// The line of its first cell, from 1.
    pub(super) line: u64,
    /// Its cells by their columns' names, or why it cannot be read, with its first bytes.
    pub(super) value: Result<Value, (Reject, String)>,
}

/// Returns a cell as JSON. Bytes that are not UTF-8 become null, which no field takes for text.
fn cell(column: &ArrayRef, row: usize) -> Value {
    use DataType as D;
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        D::Utf8 => Value::from(column.as_string::<i32>().value(row)),
        D::LargeUtf8 => Value::from(column.as_string::<i64>().value(row)),
        D::Binary => std::str::from_utf8(column.as_binary::<i32>().value(row))
            .map_or(Value::Null, Value::from),
        D::Boolean => Value::from(column.as_boolean().value(row)),
        D::Int8 => number::<Int8Type>(column, row),
        D::Int16 => number::<Int16Type>(column, row),
        D::Int32 => number::<Int32Type>(column, row),
        D::Int64 => number::<Int64Type>(column, row),
        D::UInt8 => number::<UInt8Type>(column, row),
        D::UInt16 => number::<UInt16Type>(column, row),
        D::UInt32 => number::<UInt32Type>(column, row),
        D::UInt64 => number::<UInt64Type>(column, row),
        D::Float32 => number::<Float32Type>(column, row),
        D::Float64 => number::<Float64Type>(column, row),
        D::List(_) => {
            let elements = column.as_list::<i32>().value(row);
            (0..elements.len()).map(|at| cell(&elements, at)).collect()
        }
        D::Struct(fields) => {
            let cells = fields.iter().zip(column.as_struct().columns());
            cells
                .map(|(field, column)| (field.name().clone(), cell(column, row)))
                .collect()
        }
        _ => Value::Null,
    }
}

fn number<T: ArrowPrimitiveType>(column: &ArrayRef, row: usize) -> Value
where
    Value: From<T::Native>,
{
    Value::from(column.as_primitive::<T>().value(row))
}
