//! Real parts for tests: a nats-server, a store in a temporary folder, contexts over both, and
//! waiting for a condition. Use it only as a dev-dependency.

pub mod nats;
pub mod rig;
pub mod wait;

pub use nats::{NatsServer, nats_server_binary};
pub use rig::{Rig, folder_store};
pub use wait::{PATIENCE, free_port, poll, poll_until, wait_until, within};
