//! Training as a loop over a thread's own state: [`data`] brings the rows, [`train`] learns them on
//! a thread of its own ([`thread`]), [`meter`] measures each step, and
//! [`losses`] judges them together.

pub mod data;
pub mod losses;
pub(crate) mod meter;
pub mod snapshot;
pub mod step;
pub(crate) mod thread;
pub(crate) mod train;
