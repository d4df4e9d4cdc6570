//! Turns token ids into the text of an answer: whole characters, `<NL>` as a newline, without stop
//! texts.

use togi_tokens::Decoder;

use crate::engine::stop_text::{Scan, StopTexts};

/// An answer while it is written.
pub(crate) struct Answer {
    decoder: Decoder,
    stops: StopTexts,
}

impl Answer {
    pub(crate) fn new(decoder: Decoder, stops: Vec<String>) -> Self {
        Self {
            decoder,
            stops: StopTexts::new(stops),
        }
    }

    /// Takes the next token of the answer, except one that ends it.
    pub(crate) fn push(&mut self, id: u32) -> Scan {
        self.stops.push(&self.decoder.push(id))
    }

    /// Ends an answer that no stop text has ended, and returns the text held back. The text that
    /// the decoder held back may still contain a stop text.
    pub(crate) fn finish(&mut self) -> Scan {
        let mut scan = self.stops.push(&self.decoder.finish());
        if !scan.stopped {
            scan.text += &self.stops.finish();
        }
        scan
    }
}
