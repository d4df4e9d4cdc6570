//! A claimed job at work: [`worker`] claims it, [`training`] trains it and [`checkpoint`] keeps its
//! state, then its adapter is published and [`evaluation`] asks its gate.

pub mod checkpoint;
pub mod evaluation;
pub mod parts;
pub mod worker;

pub(crate) mod announcement;
pub(crate) mod job;
pub(crate) mod publish;
pub(crate) mod training;
