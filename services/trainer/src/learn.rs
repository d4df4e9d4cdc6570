//! Training as a loop over a thread's own state: [`data`] brings the rows, [`train`] learns them,
//! [`meter`] measures each step.

pub mod data;
pub mod meter;
pub mod snapshot;
pub mod step;
pub mod train;
