//! Reads CSV and TSV, row by row with bounded memory: a header, then cells that RFC 4180 lets be
//! quoted, with line breaks in them.

use std::io::BufRead;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use serde_json::{Map, Value};
use togi_tokens::Reject;
use togi_tokens::shape::Shape;

use super::chunk::{
    CHUNK_BYTES, CHUNK_RECORDS, Chunk, Chunks, KEPT_OF_OVER_LONG, MAX_RECORD_BYTES,
};
use super::table::{Row, Separated};
use super::tabular;
use crate::error::{Error, Result};

/// Most columns of a header.
const MAX_COLUMNS: usize = 4096;
/// Most bytes of a row that is too long before its file is refused: a quote that does not end takes
/// in everything after it.
const MAX_OVER_LONG_BYTES: u64 = 16 << 20;

/// The rows of a file as JSON objects.
pub(super) struct Rows {
    cells: Cells,
    /// The name of each column that is read.
    names: Vec<Option<String>>,
}

impl Rows {
    /// Reads the header, which must have the columns of the records.
    pub(super) fn open(
        reader: Box<dyn BufRead + Send>,
        separator: u8,
        said: Option<&Shape>,
    ) -> Result<(Self, Shape)> {
        let mut cells = Cells::new(reader, separator);
        let Some(row) = cells.next()? else {
            return Err(Error::Empty);
        };
        if row.over_long {
            return Err(Error::malformed("the header is too long"));
        }
        let mut header = Vec::with_capacity(cells.count);
        for cell in cells.cells() {
            let name = std::str::from_utf8(cell).map_err(|_| {
                Error::malformed(
                    "the header is not UTF-8; convert the file, for example with \
                     `iconv -f SHIFT_JIS -t UTF-8`",
                )
            })?;
            header.push(name.trim().to_owned());
        }
        let shape = tabular::shape(said, &header)?;
        let wanted = shape.wanted();
        for (at, name) in header.iter().enumerate() {
            if wanted.contains(&name.as_str()) && header[..at].contains(name) {
                let text = format!("the header has {name:?} twice; keep one of them");
                return Err(Error::malformed(text));
            }
        }
        let names = header
            .iter()
            .map(|name| wanted.contains(&name.as_str()).then(|| name.clone()));
        let rows = Self {
            names: names.collect(),
            cells,
        };
        Ok((rows, shape))
    }

    fn value(&self, row: &Found) -> Result<Value, (Reject, String)> {
        let cells = &self.cells;
        let shown = || {
            let bytes = &cells.bytes[..cells.written.min(KEPT_OF_OVER_LONG)];
            String::from_utf8_lossy(bytes).into_owned()
        };
        let rejected = |reason: String| Err((Reject::record(reason), shown()));
        if row.over_long {
            return rejected(format!("longer than {MAX_RECORD_BYTES} bytes"));
        }
        if row.broken_quote {
            let reason = "a quoted cell goes on behind its closing quote, so that it may have taken \
                          in rows after it; a quote within a cell must be written twice";
            return rejected(reason.to_owned());
        }
        let (found, wanted) = (cells.count, self.names.len());
        if found != wanted {
            return rejected(format!(
                "the row has {found} cells, and the header {wanted}; a cell with the separator or \
                 a line break in it must be quoted"
            ));
        }
        let mut object = Map::new();
        for (name, cell) in self.names.iter().zip(cells.cells()) {
            let Some(name) = name else { continue };
            let Ok(text) = std::str::from_utf8(cell) else {
                return rejected(format!(
                    "{name} is not UTF-8; convert the file, for example with \
                     `iconv -f SHIFT_JIS -t UTF-8`"
                ));
            };
            object.insert(name.clone(), Value::from(text));
        }
        Ok(Value::Object(object))
    }
}

impl Chunks for Rows {
    fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        let mut found = Separated::default();
        while found.rows.len() < CHUNK_RECORDS && found.bytes < CHUNK_BYTES {
            let Some(row) = self.cells.next()? else { break };
            found.bytes += self.cells.written;
            found.rows.push(Row {
                line: row.line,
                value: self.value(&row),
            });
        }
        Ok((!found.rows.is_empty()).then_some(Chunk::Separated(found)))
    }
}

/// The cells of one row after the other.
struct Cells {
    reader: Box<dyn BufRead + Send>,
    core: Reader,
    separator: u8,
    /// Room for a row's unquoted cells, one behind the other, and the bytes that they take.
    bytes: Vec<u8>,
    written: usize,
    /// Room for the end of each cell, and the number of cells.
    ends: Vec<usize>,
    count: usize,
}

/// Where a row began, and why its cells may not be what its author meant.
struct Found {
    line: u64,
    /// Its cells are incomplete.
    over_long: bool,
    /// A closing quote is followed by more of its cell, which the reader takes for text.
    broken_quote: bool,
}

/// Where in a row the next byte stands, as RFC 4180 has it.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    CellBegins,
    Plain,
    Quoted,
    /// Behind a quote in a quoted cell, which ends the cell or is the first of two.
    BehindQuote,
    Broken,
}

impl Place {
    fn behind(self, byte: u8, separator: u8) -> Self {
        let ends = byte == separator || b"\r\n".contains(&byte);
        match (self, byte) {
            (Self::Broken, _) => Self::Broken,
            (Self::Quoted, b'"') => Self::BehindQuote,
            (Self::Quoted, _) | (Self::BehindQuote | Self::CellBegins, b'"') => Self::Quoted,
            (_, _) if ends => Self::CellBegins,
            (Self::BehindQuote, _) => Self::Broken,
            (Self::CellBegins | Self::Plain, _) => Self::Plain,
        }
    }
}

impl Cells {
    fn new(reader: Box<dyn BufRead + Send>, separator: u8) -> Self {
        Self {
            reader,
            core: ReaderBuilder::new().delimiter(separator).build(),
            separator,
            bytes: vec![0; 16 << 10],
            written: 0,
            ends: vec![0; 16],
            count: 0,
        }
    }

    fn cells(&self) -> impl Iterator<Item = &[u8]> {
        let ends = &self.ends[..self.count];
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts
            .zip(ends)
            .map(|(start, end)| &self.bytes[start..*end])
    }

    /// Reads the next row into the buffers; nothing at the end.
    fn next(&mut self) -> Result<Option<Found>> {
        (self.written, self.count) = (0, 0);
        let (mut place, mut taken, mut over_long) = (Place::CellBegins, 0_u64, false);
        self.skip_line_breaks()?;
        let line = self.core.line();
        loop {
            over_long |= self.make_room();
            let input = self.reader.fill_buf()?;
            let at_end = input.is_empty();
            let (bytes, ends) = (
                &mut self.bytes[self.written..],
                &mut self.ends[self.count..],
            );
            let (result, read, written, ended) = self.core.read_record(input, bytes, ends);
            for byte in &input[..read] {
                place = place.behind(*byte, self.separator);
            }
            self.reader.consume(read);
            self.written += written;
            self.count += ended;
            taken += read as u64;
            match result {
                ReadRecordResult::End => return Ok(None),
                ReadRecordResult::Record if at_end && place == Place::Quoted => {
                    return Err(Error::malformed(format!(
                        "the row of line {line} has a quote that does not end"
                    )));
                }
                ReadRecordResult::Record => {
                    over_long |= self.written > MAX_RECORD_BYTES;
                    return Ok(Some(Found {
                        line,
                        over_long,
                        broken_quote: place == Place::Broken,
                    }));
                }
                _ if taken > MAX_OVER_LONG_BYTES => {
                    return Err(Error::malformed(format!(
                        "the row of line {line} has more than {MAX_OVER_LONG_BYTES} bytes; does a \
                         quote in it not end?"
                    )));
                }
                _ => {}
            }
        }
    }

    /// Makes room for more of a row. Returns whether the row is too long, of which only the first
    /// bytes are kept.
    fn make_room(&mut self) -> bool {
        let mut over_long = false;
        if self.written + 2 > self.bytes.len() {
            if self.written > MAX_RECORD_BYTES {
                self.written = KEPT_OF_OVER_LONG;
                over_long = true;
            } else {
                self.bytes.resize(2 * self.bytes.len(), 0);
            }
        }
        if self.count == self.ends.len() {
            if self.count > MAX_COLUMNS {
                self.count = 0;
                over_long = true;
            } else {
                self.ends.resize(2 * self.ends.len(), 0);
            }
        }
        over_long
    }

    /// Skips blank lines before a row, so that its number is that of its first cell.
    fn skip_line_breaks(&mut self) -> Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let text = buffer.iter().position(|byte| !b"\r\n".contains(byte));
            let breaks = text.unwrap_or(buffer.len());
            let newlines = buffer[..breaks]
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count();
            let ended = text.is_some() || buffer.is_empty();
            self.reader.consume(breaks);
            self.core.set_line(self.core.line() + newlines as u64);
            if ended {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Each row's line, and its output or why it is rejected.
    fn rows(text: &'static str) -> Vec<(u64, String)> {
        let (mut rows, _) = Rows::open(Box::new(Cursor::new(text)), b',', None).unwrap();
        let Some(Chunk::Separated(found)) = rows.next_chunk().unwrap() else {
            panic!("no rows")
        };
        let told = found.rows.into_iter().map(|row| match row.value {
            Ok(value) => (row.line, value["output"].as_str().unwrap().to_owned()),
            Err((reject, _)) => (row.line, reject.reason),
        });
        told.collect()
    }

    #[test]
    fn a_quote_that_takes_in_other_rows_is_named_and_one_in_a_plain_cell_is_text() {
        let inches = rows("instruction,output\nq,5\" disk\nr,\"6\"\" disk\"\ns,7\" disk");
        let texts: Vec<&str> = inches.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["5\" disk", "6\" disk", "7\" disk"]);
        let taken = rows("instruction,output\nq,\"a\nr,b\ns,\"c\"\nt,d\n");
        assert_eq!(taken.len(), 2, "{taken:?}");
        assert_eq!(taken[0].0, 2);
        assert!(taken[0].1.contains("behind its closing quote"), "{taken:?}");
        assert_eq!(taken[1], (5, "d".to_owned()));
    }
}
