//! Training as a loop over a thread's own state: [`data`] brings the rows, [`train`] learns them,
//! [`progress`] measures each step.

pub mod data;
pub mod progress;
pub mod step;
pub mod train;
