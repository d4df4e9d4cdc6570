//! Tests of the crate as its users see it, in one binary.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helper may fail as the test may"
)]

mod decoding;
mod dolly;
mod fixtures;
mod reference;
mod rows;
mod sentencepiece;
mod shard;
mod strings;
mod transformers;
