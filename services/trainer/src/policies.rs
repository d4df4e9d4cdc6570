//! Jobs that a policy asks for: [`policy`] holds it, [`schedule`] tells its times, [`retraining`]
//! decides what it trains next. [`crate::follower`] queues that.

pub(crate) mod policy;
pub(crate) mod retraining;
pub(crate) mod schedule;
pub(crate) mod trigger;
