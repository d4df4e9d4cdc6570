//! Turns token ids into the text of an answer: whole characters, `<NL>` as a newline, without stop
//! texts, and every id reported once.

use togi_tokens::Decoder;

use crate::engine::event::Piece;
use crate::engine::stop_text::StopTexts;

/// An answer while it is written.
pub(crate) struct Answer {
    decoder: Decoder,
    stops: StopTexts,
    unreported: Vec<u32>,
}

/// The effect of a token on the answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The piece that can be shown now.
    pub(crate) piece: Option<Piece>,
    /// Whether a stop text ended the answer.
    pub(crate) stopped: bool,
}

impl Answer {
    pub(crate) fn new(decoder: Decoder, stops: Vec<String>) -> Self {
        Self {
            decoder,
            stops: StopTexts::new(stops),
            unreported: Vec::new(),
        }
    }

    /// Takes the next token of the answer, except EOS.
    pub(crate) fn push(&mut self, id: u32) -> Progress {
        self.unreported.push(id);
        let scan = self.stops.push(&self.decoder.push(id));
        let piece = (!scan.text.is_empty()).then(|| self.piece(scan.text));
        Progress {
            piece,
            stopped: scan.stopped,
        }
    }

    /// Ends an answer that no stop text has ended, and returns the text held back. `eos` is
    /// reported but not shown. The text that the decoder held back may still contain a stop text.
    pub(crate) fn finish(&mut self, eos: Option<u32>) -> Progress {
        self.unreported.extend(eos);
        let scan = self.stops.push(&self.decoder.finish());
        let rest = if scan.stopped {
            String::new()
        } else {
            self.stops.finish()
        };
        let text = scan.text + &rest;
        Progress {
            piece: self.last(text),
            stopped: scan.stopped,
        }
    }

    /// Returns the ids that no piece has reported when a stop text ends the answer.
    pub(crate) fn unreported(&mut self) -> Option<Piece> {
        self.last(String::new())
    }

    fn last(&mut self, text: String) -> Option<Piece> {
        (!text.is_empty() || !self.unreported.is_empty()).then(|| self.piece(text))
    }

    fn piece(&mut self, text: String) -> Piece {
        Piece {
            text,
            ids: std::mem::take(&mut self.unreported),
        }
    }
}
