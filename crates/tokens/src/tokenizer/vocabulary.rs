//! The vocabulary as decoding needs it: the text and the role of each id.

/// The character that stands for a space in pieces.
pub(crate) const SPACE: char = '\u{2581}';

/// The entries by id, and how their texts are put together.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pub(crate) pieces: Vec<Piece>,
    /// The text of the unknown piece.
    pub(crate) unk_surface: String,
    /// A space at the beginning of a text was added by the normalizer.
    pub(crate) strip_space: bool,
    /// The normalizer removes all spaces at the beginning of a text.
    pub(crate) strip_all_spaces: bool,
    /// The user-defined pieces, which win over all others.
    pub(crate) user_defined: Vec<u32>,
    pub(crate) unk: u32,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) pad: Option<u32>,
}

/// An entry of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) role: Role,
}

/// What a piece becomes in a decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its own text, with [`SPACE`] as a space.
    Text,
    /// Nothing.
    Control,
    /// The unknown surface.
    Unknown,
    /// One byte of a character.
    Byte(u8),
}
