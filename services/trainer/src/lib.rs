//! Turns data sets into adapters. Reading order: [`config`] → [`recipe`] → [`submission`] →
//! [`queue`] (accepting a job), [`run`] with [`learn`], [`papers`] and [`gate`] (working on it),
//! [`watch`] and [`registry`] (what others see), [`policies`] (jobs that a policy asks for).
//! [`local`] is a run without all that.

pub mod config;
pub mod error;
pub mod metrics;

pub mod bases;
pub mod dataset;
pub mod fit;
pub mod recipe;
pub mod registry;
pub mod request;

pub mod gate;
pub mod gauge;
pub mod learn;
pub mod papers;

pub mod submission;

pub mod queue;

pub mod adapter;
pub mod run;

pub mod follower;
pub mod policies;

pub mod page;
pub mod watch;

pub mod local;

mod api;
mod patience;
mod promoted;
mod service;
mod serving;

pub use config::{Config, Role};
pub use error::{Error, Result};
pub use recipe::Recipe;
pub use service::start;
