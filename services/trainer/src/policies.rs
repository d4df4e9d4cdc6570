//! Jobs that a policy asks for: [`policy`] holds it, [`schedule`] tells its times, [`retraining`]
//! decides what it trains next. [`crate::follower`] queues that.

pub mod policy;
pub mod retraining;
pub mod schedule;
pub mod trigger;
