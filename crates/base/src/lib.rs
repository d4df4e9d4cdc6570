//! Bases and adapters as every program reads them: a base with its tokenizer, a published adapter
//! with its manifest. Nothing is returned before it is checked. This crate does not know what the
//! caller does with either.

pub mod adapter;
pub mod checked;
pub mod error;
pub mod file;

pub use checked::CheckedBase;
pub use error::{Error, Result};
