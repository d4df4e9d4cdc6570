//! One JSON array, cut into its elements' text as it goes by. The elements are not parsed here:
//! strings and brackets are followed just far enough to see which commas are the array's own.

use std::io::BufRead;

use super::{Chunk, Chunks, MAX_RECORD_BYTES, Text};
use crate::Error;

pub(super) struct Array {
    reader: Box<dyn BufRead + Send>,
    place: Place,
    element: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Outside,
    BeforeFirst,
    AfterComma,
    Ended,
}

/// What stands behind an element.
#[derive(PartialEq)]
enum Ending {
    Comma,
    Bracket,
}

impl Array {
    pub(super) fn new(reader: Box<dyn BufRead + Send>) -> Self {
        Self {
            reader,
            place: Place::Outside,
            element: 0,
        }
    }

    /// Returns the next byte that is no white space, without taking it.
    fn peek(&mut self) -> Result<Option<u8>, Error> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            if let Some(at) = buffer.iter().position(|byte| !byte.is_ascii_whitespace()) {
                let byte = buffer[at];
                self.reader.consume(at);
                return Ok(Some(byte));
            }
            let used = buffer.len();
            self.reader.consume(used);
        }
    }

    fn enter(&mut self) -> Result<(), Error> {
        if self.peek()? != Some(b'[') {
            return Err(Error::malformed("the source is not one JSON array"));
        }
        self.reader.consume(1);
        self.place = Place::BeforeFirst;
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.place = Place::Ended;
        match self.peek()? {
            None => Ok(()),
            Some(_) => Err(Error::malformed("the source goes on behind its JSON array")),
        }
    }

    /// Appends one element's text, at most a byte more than a record may have, and takes what ends
    /// it.
    fn element(&mut self, text: &mut Vec<u8>) -> Result<Ending, Error> {
        let start = text.len();
        let (mut depth, mut quoted, mut escaped) = (0_u64, false, false);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                let after = self.element;
                return Err(Error::malformed(format!(
                    "the JSON array does not end; {after} elements are whole"
                )));
            }
            let mut ending = None;
            let mut used = buffer.len();
            for (at, &byte) in buffer.iter().enumerate() {
                if escaped {
                    escaped = false;
                } else if quoted {
                    escaped = byte == b'\\';
                    quoted = byte != b'"';
                } else {
                    match byte {
                        b'"' => quoted = true,
                        b'{' | b'[' => depth += 1,
                        b',' if depth == 0 => ending = Some(Ending::Comma),
                        b']' if depth == 0 => ending = Some(Ending::Bracket),
                        b'}' | b']' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                    if ending.is_some() {
                        used = at;
                        break;
                    }
                }
            }
            let room = (MAX_RECORD_BYTES + 1).saturating_sub(text.len() - start);
            text.extend_from_slice(&buffer[..used.min(room)]);
            self.reader.consume(used + usize::from(ending.is_some()));
            if let Some(ending) = ending {
                return Ok(ending);
            }
        }
    }
}

impl Chunks for Array {
    fn next_chunk(&mut self) -> Result<Option<Chunk>, Error> {
        if self.place == Place::Outside {
            self.enter()?;
        }
        let mut text = Text::default();
        while self.place != Place::Ended && !text.is_full() {
            if self.place == Place::BeforeFirst && self.peek()? == Some(b']') {
                self.reader.consume(1);
                self.leave()?;
                break;
            }
            // White space before an element is none of its length.
            self.peek()?;
            let start = text.bytes.len();
            let ending = self.element(&mut text.bytes)?;
            self.element += 1;
            text.end_record(self.element, start);
            self.place = Place::AfterComma;
            if ending == Ending::Bracket {
                self.leave()?;
            }
        }
        Ok((!text.spans.is_empty()).then_some(Chunk::Text(text)))
    }
}
