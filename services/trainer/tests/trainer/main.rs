//! Tests the trainer with real parts: a nats-server, a store, data-prep and a tiny random base.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

mod absence;
mod device;
mod gate;
mod harness;
mod inputs;
mod jobs;
mod policies;
mod precisions;
mod recipes;
mod refusals;
mod resume;
mod retraining;
mod training;
mod windows;
