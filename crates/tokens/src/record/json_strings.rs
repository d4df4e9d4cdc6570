//! Following the strings of a JSON text that is read byte by byte.

/// Where in a JSON text the next byte stands.
#[derive(Default)]
pub struct JsonStrings {
    quoted: bool,
    escaped: bool,
}

impl JsonStrings {
    /// Whether the next byte stands in a string.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        self.quoted
    }

    /// Takes the next byte. Returns whether it stands outside of strings, as an opening quote does.
    #[inline]
    pub fn take(&mut self, byte: u8) -> bool {
        let was_outside = !self.quoted;
        if self.escaped {
            self.escaped = false;
        } else if self.quoted {
            self.escaped = byte == b'\\';
            self.quoted = byte != b'"';
        } else {
            self.quoted = byte == b'"';
        }
        was_outside
    }
}
