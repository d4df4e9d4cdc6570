//! Decoding: new tokens of several sequences at once, each over its pages and with its adapter.
//! [`Decoder`] runs a round of each [`Sequence`], and [`Rounds`] is the loop around it.

mod decoder;
mod rounds;
mod sequence;

pub use decoder::{Decoder, Round};
pub use rounds::{Member, Rounds, Running};
pub use sequence::{Choice, End, Sequence, Share, chunk, max_len};

/// The default of the largest chunk of a prompt, in tokens.
pub const CHUNK: usize = 128;
