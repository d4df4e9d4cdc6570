//! Real parts for tests: a nats-server, a store in a temporary folder, contexts over both, waiting
//! for a condition, an HTTP server with chosen answers, and a hub. Use it only as a dev-dependency.

pub mod http;
pub mod hub;
pub mod nats;
pub mod rig;
pub mod wait;

pub use hub::LocalHub;
pub use nats::{NatsServer, nats_server_binary};
pub use rig::{Rig, folder_store};
pub use wait::{PATIENCE, free_port, poll, poll_until, wait_until, within};
