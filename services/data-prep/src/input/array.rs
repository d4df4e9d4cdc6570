//! Cuts one JSON array into the texts of its elements while it streams by. Elements are not parsed:
//! only strings and brackets are followed, to find the commas between elements.

use std::io::BufRead;

use togi_tokens::record::JsonStrings;

use super::chunk::{Chunk, Chunks, MAX_RECORD_BYTES, Text};
use crate::error::Error;

pub(super) struct Array {
    reader: Box<dyn BufRead + Send>,
    state: State,
    element: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Outside,
    BeforeFirst,
    AfterComma,
    Ended,
}

/// The token after an element.
#[derive(PartialEq)]
enum Ending {
    Comma,
    Bracket,
}

impl Array {
    pub(super) fn new(reader: Box<dyn BufRead + Send>) -> Self {
        Self {
            reader,
            state: State::Outside,
            element: 0,
        }
    }

    /// Returns the next byte that is not white space, without consuming it.
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
        self.state = State::BeforeFirst;
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.state = State::Ended;
        match self.peek()? {
            None => Ok(()),
            Some(_) => Err(Error::malformed("the source goes on behind its JSON array")),
        }
    }

    /// Appends one element's text, at most one byte more than a record may have, and consumes the
    /// token after it.
    fn element(&mut self, text: &mut Vec<u8>) -> Result<Ending, Error> {
        let start = text.len();
        let (mut depth, mut strings) = (0_u64, JsonStrings::default());
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
                if strings.take(byte) {
                    match byte {
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
        if self.state == State::Outside {
            self.enter()?;
        }
        let mut text = Text::default();
        while self.state != State::Ended && !text.is_full() {
            if self.state == State::BeforeFirst && self.peek()? == Some(b']') {
                self.reader.consume(1);
                self.leave()?;
                break;
            }
            // White space before an element does not count for its length.
            self.peek()?;
            let start = text.bytes.len();
            let ending = self.element(&mut text.bytes)?;
            self.element += 1;
            text.end_record(self.element, start);
            self.state = State::AfterComma;
            if ending == Ending::Bracket {
                self.leave()?;
            }
        }
        Ok((!text.is_empty()).then_some(Chunk::Text(text)))
    }
}
