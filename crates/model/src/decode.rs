//! Decoding: new tokens of several sequences at once, each over its pages and with its adapter.
//! [`Decoder`] runs a round, and [`Rounds`] is the loop around it.

mod decoder;
mod rounds;

pub use decoder::{Choice, Decoder, End, Sequence, Share, chunk, max_len};
pub use rounds::{Member, Rounds};

/// The default of the largest chunk of a prompt, in tokens.
pub const CHUNK: usize = 128;
