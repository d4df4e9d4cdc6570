//! The numbers of transformers, PEFT and torch: `tests/reference/` describes how the fixtures were
//! made.

// The configuration's exception for tests sees test functions, not their helpers.
#![allow(clippy::unwrap_used)]

mod adapters;
mod fixtures;
mod generation;
mod merged;
mod network;
mod training;
