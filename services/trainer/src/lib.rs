//! Turns data sets into adapters. Reading order: [`config`] → [`recipe`] → `submission` → `queue`
//! (accepting a job), `run` with [`learn`], [`papers`] and [`gate`] (working on it), `watch` and
//! `registry` (what others see), `policies` and `follower` (jobs that a policy asks for). [`local`]
//! is a run without all that.

pub mod config;
pub mod gate;
pub mod learn;
pub mod local;
pub mod papers;
pub mod recipe;

mod adapter;
mod api;
mod bases;
mod dataset;
mod error;
mod fit;
mod follower;
mod gauge;
mod metrics;
mod page;
mod patience;
mod policies;
mod promoted;
mod queue;
mod registry;
mod request;
mod run;
mod service;
mod serving;
mod submission;
mod watch;

pub use config::{Config, Role};
pub use error::{Error, Result};
pub use recipe::Recipe;
pub use service::start;
