//! A run of records in the source's order, of bounded size.

use serde_json::Value;
use togi_tokens::record::Fault;
use togi_tokens::shape::Shape;
use togi_tokens::{Record, Reject};

use super::table::{Separated, Table};
use crate::error::Error;

/// Most bytes of a record as written in the source. A longer one is rejected and never held in
/// memory.
pub const MAX_RECORD_BYTES: usize = 1 << 20;
/// Bytes that are kept of a record that is too long; they are shown with its rejection.
pub(super) const KEPT_OF_OVER_LONG: usize = 1 << 10;
/// A chunk is full at this many records,
pub(super) const CHUNK_RECORDS: usize = 64;
/// or at this many bytes of text.
pub(super) const CHUNK_BYTES: usize = 128 << 10;

/// A run of records in the source's order.
pub enum Chunk {
    /// Records as JSON text.
    Text(Text),
    /// Records as rows of a table.
    Table(Table),
    /// Records as rows of CSV or TSV.
    Separated(Separated),
}

/// One record of a [`Chunk`].
pub struct Item<'a> {
    /// Its line (JSON Lines, CSV) or its position (JSON array, table), from 1.
    pub number: u64,
    content: Content<'a>,
}

enum Content<'a> {
    Text(TextRecord<'a>),
    Row(Value),
    Unreadable(&'a (Reject, String)),
}

impl Chunk {
    /// Returns the records in order.
    #[must_use]
    pub fn items(&self) -> Box<dyn Iterator<Item = Item<'_>> + '_> {
        let item = |number, content| Item { number, content };
        match self {
            Self::Text(text) => {
                let records = text.records();
                Box::new(records.map(move |record| item(record.number, Content::Text(record))))
            }
            Self::Table(table) => {
                let rows = table.records();
                Box::new(rows.map(move |(number, value)| item(number, Content::Row(value))))
            }
            Self::Separated(separated) => Box::new(separated.rows.iter().map(move |row| {
                let content = match &row.value {
                    Ok(value) => Content::Row(value.clone()),
                    Err(unreadable) => Content::Unreadable(unreadable),
                };
                item(row.line, content)
            })),
        }
    }
}

impl Item<'_> {
    /// Reads the record.
    ///
    /// # Errors
    /// Why it gives no row.
    pub fn read(&self, shape: &Shape) -> Result<Record, Fault> {
        let too_long = || Reject::record(format!("longer than {MAX_RECORD_BYTES} bytes")).into();
        match &self.content {
            Content::Text(record) if record.over_long => Err(too_long()),
            Content::Text(record) => shape.from_json_slice(record.bytes),
            Content::Row(value) if text_bytes(value) > MAX_RECORD_BYTES => Err(too_long()),
            Content::Row(value) => shape.from_json(value.clone()),
            Content::Unreadable((reject, _)) => Err(reject.clone().into()),
        }
    }

    /// Returns at least `bytes` of the record as written, or all of it.
    #[must_use]
    pub fn sample(&self, bytes: usize) -> String {
        match &self.content {
            // A character may be cut.
            Content::Text(TextRecord { bytes: text, .. }) => {
                String::from_utf8_lossy(&text[..text.len().min(bytes + 4)]).into_owned()
            }
            Content::Row(value) => value.to_string(),
            Content::Unreadable((_, sample)) => sample.clone(),
        }
    }
}

/// The bytes of all texts in a value.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(text_bytes).sum(),
        Value::Object(object) => object.values().map(text_bytes).sum(),
        _ => 0,
    }
}

/// Records as JSON text in one buffer.
#[derive(Default)]
pub struct Text {
    pub(super) bytes: Vec<u8>,
    spans: Vec<Span>,
}

struct Span {
    number: u64,
    start: usize,
    end: usize,
    over_long: bool,
}

/// One record of a [`Text`].
pub struct TextRecord<'a> {
    /// Its line (JSON Lines) or its position (JSON array), from 1.
    pub number: u64,
    /// Its bytes; only the first ones if it is `over_long`.
    pub bytes: &'a [u8],
    /// It has more than [`MAX_RECORD_BYTES`].
    pub over_long: bool,
}

impl Text {
    /// Returns the records in order.
    pub fn records(&self) -> impl Iterator<Item = TextRecord<'_>> {
        self.spans.iter().map(|span| TextRecord {
            number: span.number,
            bytes: &self.bytes[span.start..span.end],
            over_long: span.over_long,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.spans.len() >= CHUNK_RECORDS || self.bytes.len() >= CHUNK_BYTES
    }

    /// Ends the record that began at `start` of the buffer, and trims its white space.
    pub(super) fn end_record(&mut self, number: u64, start: usize) {
        let over_long = self.bytes.len() - start > MAX_RECORD_BYTES;
        if over_long {
            self.bytes.truncate(start + KEPT_OF_OVER_LONG);
        }
        let text = &self.bytes[start..];
        let lead = text.len() - text.trim_ascii_start().len();
        let end = start + lead + text.trim_ascii().len();
        self.spans.push(Span {
            number,
            start: start + lead,
            end,
            over_long,
        });
    }
}

/// A source of chunks.
pub trait Chunks {
    /// Returns the next records, or nothing at the end.
    ///
    /// # Errors
    /// When the source cannot be read or is malformed.
    fn next_chunk(&mut self) -> Result<Option<Chunk>, Error>;
}
