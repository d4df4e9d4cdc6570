//! A claimed job at work: [`worker`] claims it, [`training`] trains it and [`checkpoint`] keeps its
//! state, then its adapter is published and [`evaluation`] asks its gate.

pub(crate) mod checkpoint;
pub(crate) mod evaluation;
pub(crate) mod parts;
pub(crate) mod worker;

pub(crate) mod announcement;
pub(crate) mod job;
pub(crate) mod publish;
pub(crate) mod training;
