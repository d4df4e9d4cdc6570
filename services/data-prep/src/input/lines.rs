//! Cuts JSON Lines into the texts of its records.

use std::io::{BufRead, Read};

use super::chunk::{Chunk, Chunks, MAX_RECORD_BYTES, Text};
use crate::error::Error;

pub(super) struct Lines {
    reader: Box<dyn BufRead + Send>,
    line: u64,
}

impl Lines {
    pub(super) fn new(reader: Box<dyn BufRead + Send>) -> Self {
        Self { reader, line: 0 }
    }

    /// Skips blank lines and the white space before a record, by the buffer: a file may have
    /// millions of them.
    fn skip_blank(&mut self) -> Result<(), Error> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let text = buffer.iter().position(|byte| !byte.is_ascii_whitespace());
            let blank = text.unwrap_or(buffer.len());
            let newlines = buffer[..blank].iter().filter(|&&byte| byte == b'\n');
            self.line += newlines.count() as u64;
            let ended = text.is_some() || buffer.is_empty();
            self.reader.consume(blank);
            if ended {
                return Ok(());
            }
        }
    }

    fn skip_line(&mut self) -> Result<(), Error> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let (used, ended) = match buffer.iter().position(|&byte| byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(used);
            if ended {
                return Ok(());
            }
        }
    }
}

impl Chunks for Lines {
    fn next_chunk(&mut self) -> Result<Option<Chunk>, Error> {
        let mut text = Text::default();
        while !text.is_full() {
            self.skip_blank()?;
            let start = text.bytes.len();
            // One byte more than a record may have, and a newline. A longer line is over-long.
            let most = MAX_RECORD_BYTES as u64 + 2;
            let read = self
                .reader
                .by_ref()
                .take(most)
                .read_until(b'\n', &mut text.bytes)?;
            if read == 0 {
                break;
            }
            self.line += 1;
            if text.bytes.last() == Some(&b'\n') {
                text.bytes.pop();
                if text.bytes.last() == Some(&b'\r') {
                    text.bytes.pop();
                }
            } else if read as u64 == most {
                self.skip_line()?;
            }
            text.end_record(self.line, start);
        }
        Ok((!text.is_empty()).then_some(Chunk::Text(text)))
    }
}
