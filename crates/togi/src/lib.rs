//! The `togi` command as a library that tests can call: the client of the services, `togi up` in
//! process, and the demonstration.

pub mod args;
pub mod client;
pub mod commands;
pub mod demo;
pub mod dispatch;
pub mod embedded;
pub mod error;
pub mod gc;
pub mod globals;
pub mod local;
pub mod output;
pub mod pipeline;
pub mod progress;
pub mod recipe;
pub mod score;
pub mod session;
pub mod settings;
pub mod table;
pub mod up;
pub mod up_state;
pub mod upload;
pub mod when;

pub use error::{Error, Result};
