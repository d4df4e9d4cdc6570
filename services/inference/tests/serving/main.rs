//! The inference service from outside: a real gRPC client, a real store, a real nats-server or
//! none.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test binary has no outside"
)]

mod adapters;
mod answers;
mod bases;
mod benchmark;
mod choices;
mod device;
mod door;
mod following;
mod harness;
mod logprobs;
mod mismatch;
mod options;
mod pool;
mod prefixes;
mod refusing;
mod scale;
mod scheduling;
mod swapping;
mod vocabulary;

#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../../benches/serving/deployment.rs"]
mod deployment;
#[path = "../../benches/serving/prompts.rs"]
mod prompts;
