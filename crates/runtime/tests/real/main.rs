//! The runtime over real parts: a nats-server child, a store in a folder, gRPC over loopback, a hub
//! in this process.

#![allow(clippy::unwrap_used, reason = "tests")]

mod absence;
mod aliases;
mod bus;
mod dead_letters;
mod grpc;
mod hub;
mod jobs;
mod outages;
mod traces;
mod workers;
