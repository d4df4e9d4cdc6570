//! Decoding: new tokens of several sequences at once, each over its cache and with its adapter.

mod decoder;
pub(crate) mod forward;
pub(crate) mod groups;

pub use decoder::{Choice, Decoder, End, Sequence, Share, max_len};
