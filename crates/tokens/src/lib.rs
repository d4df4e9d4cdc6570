//! Records become prompts, prompts become tokens, tokens become shards: the pure half of data
//! preparation.
//!
//! Each step of the flow has one file: [`form`] and [`shape`] → [`record`] → [`prompt`] →
//! [`tokenizer`] → [`row`] → [`shard`] → [`manifest`], read back in [`order`]. This crate opens no
//! files or connections, knows no service and is not asynchronous.

mod chat;
mod error;

pub mod digest;
pub mod form;
pub mod manifest;
pub mod order;
pub mod prompt;
pub mod record;
pub mod row;
pub mod shape;
pub mod shard;
pub mod split;
pub mod tokenizer;

pub use digest::DatasetHasher;
pub use error::{Error, Result};
pub use manifest::{DatasetManifest, Part, Split};
pub use order::Permutation;
pub use record::{Columns, Record, Reject};
pub use row::{Encoder, Learn, OverLong, Row, Settings};
pub use tokenizer::{Decoder, Scratch, Tokenizer};
