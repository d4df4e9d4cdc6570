//! Turns data sets into adapters. Reading order: [`config`] → [`recipe`] → [`submission`] → [`queue`] (accepting a job),
//! [`worker`] → [`train`] → [`checkpoint`], [`log`] → publish → [`evaluation`] (working on it), [`watch`], [`registry`] (what others
//! see), [`policy`] → [`retraining`] → [`follower`] (jobs that nobody asks for). [`local`] is a run without all that.

pub mod adapter;
pub mod api;
pub mod bases;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod dataset;
pub mod error;
pub mod evaluation;
pub mod fit;
pub mod follower;
pub mod gate;
pub mod gauge;
pub mod local;
pub mod log;
pub mod metrics;
pub mod page;
pub mod policy;
pub mod progress;
pub mod queue;
pub mod recipe;
pub mod registry;
pub mod report;
pub mod request;
pub mod retraining;
pub mod schedule;
pub mod submission;
pub mod tensorboard;
pub mod train;
pub mod watch;
pub mod worker;

mod card;
mod patience;
mod promoted;

mod publish;
mod run;
mod service;
mod serving;

pub use config::{Config, Role};
pub use error::{Error, Result};
pub use recipe::Recipe;
pub use service::start;
