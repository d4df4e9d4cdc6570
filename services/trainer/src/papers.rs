//! What a job leaves to read: its log, its report, its TensorBoard events and the adapter's model
//! card.

pub mod log;
pub mod report;
pub mod tensorboard;

pub(crate) mod model_card;
