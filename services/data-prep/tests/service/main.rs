//! The service as its clients see it: a real nats-server, a store in a temporary folder, gRPC over
//! a socket.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod errors;
mod flight;
mod formats;
mod forms;
mod prepare;
mod rig;
