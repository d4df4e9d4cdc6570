//! Decoding: new tokens of several sequences at once, each over its pages and with its adapter.

mod decoder;

pub use decoder::{Choice, Decoder, End, Sequence, Share, max_len};
